"""Settings of `engine: deepspeed`, and what it does not take together. Rules that DeepSpeed or its proof here ask for; no torch."""

from __future__ import annotations

from typing import Any, Literal

from megatron_codemix.config.section import Count, CountOrZero, Section, is_count, whole

Place = Literal["none", "cpu", "nvme"]


class DeepSpeedConfig(Section):
    """ZeRO: what data- and context-parallel ranks split among them instead of each holding it whole; `engine: deepspeed` only."""

    zero_stage: Literal[1, 2, 3] = 1
    """1: master weights and moments are split; 2: gradients too; 3: weights too."""
    offload_optimizer: Place = "none"
    """Where master weights and moments are kept and updated: none (on the device) or cpu (host memory); nvme is refused."""
    offload_parameters: Place = "none"
    """zero_stage 3 only: where the rank's part of the weights is kept between its uses: none (on the device) or cpu; nvme is refused."""
    bucket_elements: Count = 50_000_000
    """Gradients (weights, in zero_stage 3) exchanged at a time; a buffer of this size, in fp32, is held beside the states."""
    persistent_elements: CountOrZero = 100_000
    """zero_stage 3 only: weights with at most so many elements stay whole on every rank."""
    live_elements: Count = 1_000_000_000
    """zero_stage 3 only: weights that may be whole on a rank at a time."""


def deepspeed_problems(raw: dict[str, Any]) -> list[str]:
    """Everything about `engine`, `deepspeed` and `parallel` of a raw run config that does not go together: `path: what; remedy`."""
    section, parallel = raw.get("deepspeed", {}), raw.get("parallel", {})
    section = section if isinstance(section, dict) else {}
    parallel = parallel if isinstance(parallel, dict) else {}
    defaults = DeepSpeedConfig().model_dump(mode="json")
    wanted = {**defaults, **section}
    if raw.get("engine", "megatron") != "deepspeed":
        # the defaults are no wish, they stand in every resolved config
        changed = [key for key in defaults if whole(wanted[key]) != defaults[key]]
        return [f"deepspeed.{changed[0]}: only engine 'deepspeed' has it; set engine to deepspeed, or leave it out"] if changed else []
    stage = whole(wanted["zero_stage"])
    problems = [*_layout_problems(parallel, stage), *_offload_problems(wanted, stage)]
    pipeline = whole(parallel.get("pipeline", 1))
    if raw.get("width_transfer") is not None and is_count(pipeline) and pipeline > 1:
        problems.append(
            "width_transfer: engine 'deepspeed' sums norms group by group over the stages, which would not have the same groups of "
            "learning rates; set parallel.pipeline to 1, or engine to megatron"
        )
    return problems


def _layout_problems(parallel: dict[str, Any], stage: Any) -> list[str]:
    problems = []
    pipeline, virtual = whole(parallel.get("pipeline", 1)), whole(parallel.get("virtual_stages", 1))
    if is_count(pipeline) and pipeline > 1 and stage in (2, 3):
        problems.append(
            f"deepspeed.zero_stage: {stage} exchanges gradients with every micro-batch, which a pipeline has in flight at once; "
            "set it to 1, or parallel.pipeline to 1"
        )
    if is_count(virtual) and virtual > 1:
        problems.append("parallel.virtual_stages: DeepSpeed's engine holds one module a rank; set it to 1, or engine to megatron")
    layers = parallel.get("layers_per_stage")
    if isinstance(layers, list) and layers and whole(layers[0]) == 0:
        problems.append(
            "parallel.layers_per_stage: engine 'deepspeed' sums norms of matrices and of vectors over the stages, and a first stage "
            "without layers has no vectors; give it a layer"
        )
    if parallel.get("distributed_optimizer") is True:
        problems.append("parallel.distributed_optimizer: is megatron-core's; engine 'deepspeed' has deepspeed.zero_stage; leave it out")
    if parallel.get("overlap_param_gather") is True:
        problems.append("parallel.overlap_param_gather: is megatron-core's; leave it out, or set engine to megatron")
    if parallel.get("overlap_grad_reduce") is True and stage == 1:
        problems.append(
            "parallel.overlap_grad_reduce: deepspeed.zero_stage 1 reduces when all micro-batches are done; set it to 2, or this to false"
        )
    return problems


def _offload_problems(wanted: dict[str, Any], stage: Any) -> list[str]:
    problems = [
        f"deepspeed.{key}: state on nvme needs libaio and a compiler, is not in our checkpoints' reach, and is not proven here; choose cpu"
        for key in ("offload_optimizer", "offload_parameters")
        if wanted[key] == "nvme"
    ]
    if wanted["offload_parameters"] == "cpu" and stage != 3:
        problems.append("deepspeed.offload_parameters: only zero_stage 3 splits weights; set zero_stage to 3, or leave it out")
    for key in ("persistent_elements", "live_elements"):
        default = DeepSpeedConfig.model_fields[key].default
        if stage in (1, 2) and whole(wanted[key]) != default:
            problems.append(f"deepspeed.{key}: only zero_stage 3 has it; leave it out, or set zero_stage to 3")
    return problems
