"""Core attention of our layer spec: scaled_dot_product_attention, told of documents by their ids.

megatron-core carries one opaque tensor, `attention_mask`, from the model's call through pipeline stages'
layers and through activation recompute to every core attention. We hand it the micro-batch's document
ids, int64 (B, S), or (2, B, S) with the flags of prefixes behind them, and build what attention needs
from them here. So each micro-batch owns its ids, however many are in flight, and no S×S mask travels.

Under context parallelism a rank holds the queries of R = S/C positions of every window. It gathers the
keys and values of all S, and has the ids of all S already: they are never cut.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_codemix.kernels import DocumentLayouts, causal_attention, document_attention, gather_rows


class DocumentAttention(MegatronModule):
    """The call of megatron-core's DotProductAttention; has no parameters.

    layouts: shared by all layers of a model, so that a micro-batch's documents are found once; it has the model's sliding window.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        layouts: DocumentLayouts,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self"
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
        self.context_group: torch.distributed.ProcessGroup = groups.cp
        self.layouts = layouts
        self.softmax_scale = softmax_scale
        self.dropout: float = config.attention_dropout
        self.sequence_parallel: bool = config.sequence_parallel

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """query (R, B, N, D), key and value (R, B, G, D) of this rank's positions → (R, B, N·D).

        attention_mask: document ids of all positions, int64 (B, S), or ids and prefix flags, int64 (2, B, S); None: every window
        is one document without a prefix.
        Collective over the context-parallel ranks.
        """
        assert attention_bias is None and packed_seq_params is None
        size, rank = self.context_group.size(), self.context_group.rank()
        if size > 1:  # keys and values in one exchange
            key, value = gather_rows(torch.stack((key, value), dim=1), 0, self.context_group).unbind(1)
        dropout = self.dropout if self.training else 0.0
        with self._generator(dropout):
            if attention_mask is None:
                slides = self.layouts.sliding_window
                return causal_attention(query, key, value, self.softmax_scale, dropout=dropout, size=size, rank=rank, sliding_window=slides)
            layout = self.layouts.of(attention_mask, size, rank)
            return document_attention(query, key, value, layout, self.softmax_scale, dropout=dropout)

    def _generator(self, dropout: float) -> AbstractContextManager[None]:
        """The generator that differs between tensor-parallel ranks, for they hold different heads.

        With sequence parallelism all of the block's forward pass runs under it already, and to fork it again
        would draw other numbers when activations are recomputed.
        """
        if dropout == 0.0 or self.sequence_parallel:
            return nullcontext()
        return get_cuda_rng_tracker().fork()  # pyright: ignore[reportOptionalMemberAccess]
