"""RMSNorm as megatron-core constructs it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """x / √(mean(x²) + ε) · weight over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467).

    megatron-core's own wrapper of torch's norm refuses sequence parallelism; this one marks its weight,
    whose gradient the ranks then sum.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **ignored: Any) -> None:
        device = torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Where the norm is no single operator its input has several gradients. Behind a node of their own they are summed
        # before the residual stream's is added, as they are where the norm is computed again: the same bits with and without.
        return super().forward(x.view_as(x))
