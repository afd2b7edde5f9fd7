"""megatron-core's GPTModel with our loss: exact vocabulary, per-token, in fp32."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from megatron_codemix.kernels import vocab_parallel_cross_entropy


class LanguageModel(GPTModel):
    """A GPTModel whose embedding has padding rows that no softmax sees.

    Call it with tokens int64 (B, S), positions int64 (B, S), document ids int64 (B, S) or None in the place of
    the attention mask, and labels int64 (B, S) for losses fp32 (B, S), in nats.
    """

    def __init__(self, *args: Any, real_vocab_size: int, **kwargs: Any) -> None:
        """real_vocab_size: entries of the vocabulary; `vocab_size` is the padded number of rows."""
        super().__init__(*args, **kwargs)
        self.real_vocab_size = real_vocab_size

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels (B, S), logits (S, B, V/T), which are overwritten → losses fp32 (B, S)."""
        losses = vocab_parallel_cross_entropy(logits, labels.transpose(0, 1), self.real_vocab_size, self.pg_collection.tp)
        return losses.transpose(0, 1)

    @torch.no_grad()
    def log_probabilities(self, logits_BSV: Tensor) -> Tensor:
        """Natural-log probabilities fp32 (B, S, real_vocab_size) from what the model returns without labels."""
        whole = gather_from_tensor_model_parallel_region(logits_BSV, group=self.pg_collection.tp)
        return whole[..., : self.real_vocab_size].float().log_softmax(dim=-1)
