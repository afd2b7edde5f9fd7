"""The layout of a run: how many ranks along which axis, and what they exchange memory for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_codemix.config.section import Count, CountOrZero, Section


def layers_of_stages(num_layers: int, pipeline: int, virtual_stages: int) -> list[int]:
    """The equal split of layers over pipeline · virtual_stages stages; their number must divide the layers."""
    return [num_layers // (pipeline * virtual_stages)] * (pipeline * virtual_stages)


class RecomputeConfig(Section):
    """Activations that the backward pass computes again instead of keeping them."""

    granularity: Literal["none", "selective", "full"] = "none"
    """none: keep all; selective: `modules` of each layer are computed again; full: whole layers are."""
    modules: list[Literal["core_attn", "layernorm", "mlp"]] = ["core_attn"]
    """selective only: what is computed again."""
    method: Literal["uniform", "block"] = "uniform"
    """full only. uniform: keep the input of every `num_layers`-th layer; block: compute the first `num_layers` of each stage again."""
    num_layers: Count = 1
    """full only: layers of a unit (uniform) or of a stage (block)."""
    distribute_saved: bool = False
    """full only, tensor > 1 without sequence parallelism: spread what is kept over the tensor-parallel ranks."""


class ParallelConfig(Section):
    """Degrees of parallelism; data parallelism is what is left of the world size."""

    tensor: Count = 1
    """Tensor-parallel ranks."""
    sequence: bool = False
    """Sequence parallelism: norms, dropout and residuals are split over the tensor-parallel ranks too."""
    pipeline: Count = 1
    """Pipeline ranks."""
    virtual_stages: Count = 1
    """Model chunks per pipeline rank; above 1 the schedule is interleaved."""
    layers_per_stage: list[CountOrZero] | None = None
    """Layers of each pipeline × virtual_stages stage, in the order of the model; null: equal."""
    context: Count = 1
    """Context-parallel ranks: each holds a part of every window."""
    distributed_optimizer: bool = False
    """Master weights and moments are split over the data- and context-parallel ranks (ZeRO stage 1)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still computes others."""
    overlap_param_gather: bool = False
    """distributed_optimizer only: gather updated weights while the forward pass already computes with others."""
    recompute: RecomputeConfig = RecomputeConfig()
    """Activation recompute."""

    def stage_layers(self, num_layers: int) -> list[int]:
        """Layers of each of the pipeline × virtual_stages stages, in the order of the model; rank p holds every pipeline-th from p."""
        return self.layers_per_stage or layers_of_stages(num_layers, self.pipeline, self.virtual_stages)


class TimeoutConfig(Section):
    """How long a rank is waited for."""

    join_seconds: float = Field(default=600.0, gt=0.0, lt=1e9)
    """For all processes to come; then the missing ranks are named and the job ends."""
    hang_seconds: float = Field(default=1800.0, gt=0.0, lt=1e9)
    """Without a finished step, validation batch or checkpoint; then each rank writes the stacks of its threads and the job ends.
    9e8 (28 years) switches that off."""
