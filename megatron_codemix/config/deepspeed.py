"""Settings of `engine: deepspeed`, and what it does not take together. Rules that DeepSpeed or its proof here ask for; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section, is_count, whole

Place = Literal["none", "cpu", "nvme"]


class DeepSpeedConfig(Section):
    """ZeRO: what data- and context-parallel ranks split among them instead of each holding it whole; `engine: deepspeed` only."""

    zero_stage: Literal[1, 2, 3] = 1
    """1: master weights and moments are split; 2: gradients too; 3: weights too."""
    offload_optimizer: Place = "none"
    """Where master weights and moments are kept: none (on the device), cpu (host memory), nvme (files; zero_stage 3 only)."""
    offload_parameters: Place = "none"
    """zero_stage 3 only: where the rank's part of the weights is kept between its uses: none (on the device), cpu or nvme."""
    nvme_path: FilePath | None = None
    """For nvme: a folder on a local disk of each node; files of this run lie in a folder of its own there, and go at its end."""
    swap_elements: Count = 50_000_000
    """For nvme: so many weights of a rank are updated at a time; four fp32 buffers of this size are page-locked in host memory."""
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


def swap_groups(parts: Sequence[int], swap_elements: int) -> list[int]:
    """Elements of each group of parameters that DeepSpeed swaps as one, of parameters with `parts` elements on a rank, in order.

    A group is closed by the parameter that makes it `swap_elements` or more.
    """
    groups = [0]
    for part in parts:
        if groups[-1] >= swap_elements:
            groups.append(0)
        groups[-1] += part
    return groups


def _offload_problems(wanted: dict[str, Any], stage: Any) -> list[str]:
    problems = []
    if wanted["offload_optimizer"] == "nvme" and stage in (1, 2):
        problems.append(
            f"deepspeed.offload_optimizer: in zero_stage {stage} DeepSpeed keeps in host memory what is to go to nvme; "
            "set zero_stage to 3, or this to cpu"
        )
    if wanted["offload_parameters"] in ("cpu", "nvme") and stage != 3:
        problems.append("deepspeed.offload_parameters: only zero_stage 3 splits weights; set zero_stage to 3, or leave it out")
    for key in ("persistent_elements", "live_elements"):
        default = DeepSpeedConfig.model_fields[key].default
        if stage in (1, 2) and whole(wanted[key]) != default:
            problems.append(f"deepspeed.{key}: only zero_stage 3 has it; leave it out, or set zero_stage to 3")
    return problems + _nvme_problems(wanted)


def _nvme_problems(wanted: dict[str, Any]) -> list[str]:
    places = [key for key in ("offload_optimizer", "offload_parameters") if wanted[key] == "nvme"]
    if places and wanted["nvme_path"] is None:
        return [f"deepspeed.nvme_path: is missing, and {places[0]} is nvme; name a folder on a local disk, or set {places[0]} to cpu"]
    if not places and wanted["nvme_path"] is not None:
        return ["deepspeed.nvme_path: nothing is offloaded to nvme; leave it out, or set offload_optimizer to nvme"]
    default = DeepSpeedConfig.model_fields["swap_elements"].default
    if not places and whole(wanted["swap_elements"]) != default:
        return ["deepspeed.swap_elements: nothing is offloaded to nvme; leave it out, or set offload_optimizer to nvme"]
    return []
