"""How much memory a run needs per rank, estimated from its config alone (no torch, no GPU).

Weights and optimizer states are exact counts; activations are an estimate for one micro-batch without recompute,
after Korthikanti et al. 2022 (arXiv 2205.05198, section 4) rewritten for RMSNorm, SwiGLU, grouped queries and a
core attention that does not keep the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_codemix.config import ModelConfig, RunConfig

_FP32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank."""

    weights: int
    """Parameters in the model's precision."""
    gradients: int
    """Gradient buffers, always fp32."""
    optimizer: int
    """Two fp32 moments, and fp32 master weights when the model's precision is lower."""
    activations: int
    """Estimate: what one micro-batch keeps for its backward pass."""
    logits: int
    """Estimate: logits and their gradient for one micro-batch, in fp32."""

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def activation_bytes(model: ModelConfig, micro_batch_size: int, sequence_length: int, element_bytes: int) -> int:
    """What all layers keep for the backward pass of one micro-batch, bytes.

    Per token and layer, in elements: two norm inputs and outputs (4h), query, key, value (h + 2·kv), attention
    output (h), gate, up and their product (3f), residual sums (2h).
    """
    kv_size = model.query_groups * model.head_size
    per_token = 8 * model.hidden_size + 2 * kv_size + 3 * model.ffn_hidden_size
    return model.num_layers * per_token * element_bytes * micro_batch_size * sequence_length


def estimate(config: RunConfig, rows: int) -> MemoryEstimate:
    """Memory of one rank at layout 1 for the most demanding stage. rows: padded vocabulary size."""
    parameters = config.model.num_parameters(rows)
    element = 2 if config.precision == "bf16" else _FP32
    longest = max(stage.sequence_length for stage in config.stages)
    return MemoryEstimate(
        weights=parameters * element,
        gradients=parameters * _FP32,
        optimizer=parameters * _FP32 * (3 if element < _FP32 else 2),
        activations=activation_bytes(config.model, config.micro_batch_size, longest, element),
        logits=2 * _FP32 * rows * config.micro_batch_size * longest,
    )
