"""Core attention of our layer spec: scaled_dot_product_attention, told of documents by their ids.

megatron-core carries one opaque tensor, `attention_mask`, from the model's call through pipeline stages'
layers and through activation recompute to every core attention. We hand it the micro-batch's document
ids, int64 (B, S), and build what attention needs from them here. So each micro-batch owns its ids,
however many are in flight, and no S×S mask travels.
"""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_codemix.kernels import DocumentLayouts, causal_attention, document_attention


class DocumentAttention(MegatronModule):
    """The call of megatron-core's DotProductAttention; has no parameters.

    layouts: shared by all layers of a model, so that a micro-batch's documents are found once.
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
        **ignored: Any,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self" and config.attention_dropout == 0.0
        assert config.context_parallel_size == 1, "context parallelism needs the positions of every rank's slice"
        self.layouts = layouts
        self.softmax_scale = softmax_scale

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
        """query (S, B, N, D), key and value (S, B, G, D) → (S, B, N·D).

        attention_mask: document ids, int64 (B, S); None: every window is one document.
        """
        assert attention_bias is None and packed_seq_params is None
        if attention_mask is None:
            return causal_attention(query, key, value, self.softmax_scale)
        return document_attention(query, key, value, self.layouts.of(attention_mask), self.softmax_scale)
