"""What a layout asks of the model and of the batches: every rule of megatron-core that a config could break, found before training.

Works on the raw mapping, so that all mistakes are told at once; what is malformed is passed over here and reported by its field.
`world.py` has the rules that need the number of processes. The rules follow megatron-core 0.16.1: `TransformerConfig.__post_init__`,
`PipelineParallelLayerLayout`, `pipeline_parallel/schedules.py`, `SelfAttention`, `TransformerBlock`.
"""

from __future__ import annotations

import math
from typing import Any

from megatron_codemix.config.batch_size import first_uneven, raw_sizes
from megatron_codemix.config.model import ModelConfig
from megatron_codemix.config.parallel import RecomputeConfig, layers_of_stages
from megatron_codemix.config.section import is_count, whole


def layout_problems(raw: dict[str, Any]) -> list[str]:
    """Everything about `parallel` that the model or a stage of the raw run config does not allow: `path: what; remedy`."""
    parallel, model, stages = raw.get("parallel"), raw.get("model"), raw.get("stages")
    if not isinstance(parallel, dict):
        return []
    model = model if isinstance(model, dict) else {}
    problems = [
        f"parallel.{problem}"
        for rules in (_tensor_problems, _pipeline_problems, _overlap_problems, _recompute_problems)
        for problem in rules(parallel, model)
    ]
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict):
            found = _length_problems(parallel, stage) + _schedule_problems(parallel, stage, raw)
            problems += [f"stages[{index}].{problem}" for problem in found]
    return problems


def _degree(parallel: dict[str, Any], axis: str) -> int:
    """A degree as given; 1 where it is malformed, so that no rule of its own adds to the field's message."""
    value = whole(parallel.get(axis, 1))
    return value if is_count(value) else 1


def _tensor_problems(parallel: dict[str, Any], model: dict[str, Any]) -> list[str]:
    tensor, sequence = _degree(parallel, "tensor"), parallel.get("sequence")
    problems = []
    if sequence is True and tensor == 1:
        problems.append("sequence: splits over the tensor-parallel ranks, and tensor is 1; raise tensor or leave it out")
    cut = {key: whole(model.get(key)) for key in ("num_attention_heads", "ffn_hidden_size")}
    cut["vocab_multiple"] = whole(model.get("vocab_multiple", ModelConfig.model_fields["vocab_multiple"].default))
    for key, size in cut.items():
        if is_count(size) and size % tensor:
            problems.append(f"tensor: {tensor} does not divide model.{key} {size}; choose a divisor")
    return problems + _group_problems(tensor, model)


def _group_problems(tensor: int, model: dict[str, Any]) -> list[str]:
    """Whole key/value heads on each rank, or whole ranks to each key/value head.

    Then megatron-core cuts the fused projection's rows evenly, gathers its output and lets each rank take its part.
    """
    keys = ("hidden_size", "num_attention_heads", "num_query_groups", "head_size")
    hidden, heads, groups, size = (whole(model.get(key)) for key in keys)
    if not is_count(groups) or groups % tensor == 0:
        return []
    if tensor % groups:
        return [f"tensor: {tensor} is neither a divisor nor a multiple of model.num_query_groups {groups}; choose one"]
    if not is_count(size) and is_count(hidden) and is_count(heads) and hidden % heads == 0:
        size = hidden // heads
    if is_count(size) and is_count(heads):
        rows = (heads + 2 * groups) * size
        if rows % tensor:
            return [f"tensor: {tensor} does not divide the {rows} rows of query, key and value together; lower it"]
    return []


def _pipeline_problems(parallel: dict[str, Any], model: dict[str, Any]) -> list[str]:
    pipeline, virtual, declared = _degree(parallel, "pipeline"), _degree(parallel, "virtual_stages"), parallel.get("layers_per_stage")
    layers, problems = whole(model.get("num_layers")), []
    stages, product = pipeline * virtual, f"pipeline {pipeline} × virtual_stages {virtual}"
    if virtual > 1 and pipeline == 1:
        problems.append(f"virtual_stages: {virtual} needs pipeline above 1; raise pipeline, or set virtual_stages to 1")
    if declared is None:
        if is_count(layers) and layers % stages:
            axis, number = ("pipeline", f"{pipeline}") if virtual == 1 else ("virtual_stages", product)
            problems.append(f"{axis}: {number} does not divide model.num_layers {layers}; choose a divisor, or give layers_per_stage")
        return problems
    counts = _sound_counts(declared)
    if counts is None:
        return problems
    if len(counts) != stages:
        problems.append(f"layers_per_stage: has {len(counts)} numbers, but {product} makes {stages} stages; give one for each")
    if is_count(layers) and sum(counts) != layers:
        problems.append(f"layers_per_stage: sums to {sum(counts)}, not to model.num_layers {layers}; change a number")
    empty = [str(index) for index, count in enumerate(counts[:-1]) if not count and index]
    if empty:
        problems.append(
            f"layers_per_stage: stage(s) {', '.join(empty)} would hold nothing at all; only the first, which has the embedding, "
            "and the last, which has the output layer, may do without layers"
        )
    return problems


def _overlap_problems(parallel: dict[str, Any], model: dict[str, Any]) -> list[str]:
    if parallel.get("overlap_param_gather") is not True:
        return []
    needs = ("distributed_optimizer", "overlap_grad_reduce")
    return [f"overlap_param_gather: needs {key}; set it to true, or this to false" for key in needs if parallel.get(key) is not True]


def _recompute_problems(parallel: dict[str, Any], model: dict[str, Any]) -> list[str]:
    recompute = parallel.get("recompute")
    if not isinstance(recompute, dict):
        return []
    granularity = recompute.get("granularity", "none")
    problems = [f"recompute.{problem}" for problem in _ignored(recompute, granularity)]
    if granularity == "selective" and recompute.get("modules") == []:
        problems.append("recompute.modules: 'selective' without a module computes nothing again; name one, or set granularity to 'none'")
    if granularity != "full":
        return problems
    if recompute.get("distribute_saved") is True:
        if _degree(parallel, "tensor") == 1:
            problems.append("recompute.distribute_saved: there is one tensor-parallel rank to spread over; raise tensor, or leave it out")
        if parallel.get("sequence") is True:
            problems.append("recompute.distribute_saved: sequence parallelism spreads what is kept already; leave it out")
    return problems + _unit_problems(parallel, model, recompute)


def _unit_problems(parallel: dict[str, Any], model: dict[str, Any], recompute: dict[str, Any]) -> list[str]:
    """Full recompute works through each stage in units of `num_layers`, which must come out even (uniform) or be there (block)."""
    layers, unit = whole(model.get("num_layers")), whole(recompute.get("num_layers", 1))
    if not is_count(layers) or not is_count(unit):
        return []
    declared = parallel.get("layers_per_stage")
    counts = _sound_counts(declared) if declared is not None else None
    pipeline, virtual = _degree(parallel, "pipeline"), _degree(parallel, "virtual_stages")
    if (declared is None and layers % (pipeline * virtual)) or (declared is not None and not counts):
        return []  # reported already
    stages = counts or layers_of_stages(layers, pipeline, virtual)
    if recompute.get("method", "uniform") == "uniform":
        uneven = sorted({count for count in stages if count % unit})
        if uneven:
            held = " and ".join(map(str, uneven))
            return [f"recompute.num_layers: {unit} does not divide the {held} layers of a stage; choose a divisor, or method 'block'"]
    elif unit > max(stages):
        return [f"recompute.num_layers: {unit} is more than the {max(stages)} layers of the largest stage; lower it"]
    return []


def _ignored(recompute: dict[str, Any], granularity: Any) -> list[str]:
    """Settings that the chosen granularity would pass over; the default is no wish, it stands in every resolved config."""
    defaults = RecomputeConfig().model_dump()
    owners = {"modules": "selective", "method": "full", "num_layers": "full", "distribute_saved": "full"}
    return [
        f"{key}: only granularity '{owner}' has it, '{granularity}' would ignore it; change one of them"
        for key, owner in owners.items()
        if granularity in ("none", "selective", "full")
        and granularity != owner
        and whole(recompute.get(key, defaults[key])) != defaults[key]
    ]


def _length_problems(parallel: dict[str, Any], stage: dict[str, Any]) -> list[str]:
    """Every window is cut into 2 · context pieces, and a rank's part of it over the tensor-parallel ranks."""
    length, tensor, context = whole(stage.get("sequence_length")), _degree(parallel, "tensor"), _degree(parallel, "context")
    tensor = tensor if parallel.get("sequence") is True else 1
    if not is_count(length):
        return []
    needs, reasons = 1, []
    if context > 1:
        needs, reasons = 2 * context, [f"2 × parallel.context {context}"]
    if tensor > 1:
        needs = math.lcm(needs, context * tensor)
        cut = f"parallel.context {context} × parallel.tensor {tensor}" if context > 1 else f"parallel.tensor {tensor}"
        reasons.append(f"{cut} with parallel.sequence")
    if length % needs == 0:
        return []
    return [f"sequence_length: {length} is not a multiple of {needs} ({', '.join(reasons)}); choose a multiple"]


def _schedule_problems(parallel: dict[str, Any], stage: dict[str, Any], raw: dict[str, Any]) -> list[str]:
    """The interleaved schedule's micro-batches come in groups of `pipeline`, on every data-parallel rank."""
    sizes, micro = raw_sizes(stage.get("batch_size")), whole(raw.get("micro_batch_size", 1))
    pipeline, virtual = _degree(parallel, "pipeline"), _degree(parallel, "virtual_stages")
    if virtual == 1 or pipeline == 1 or not is_count(micro) or first_uneven(sizes, micro) is not None:
        return []
    batch = first_uneven(sizes, micro * pipeline)
    if batch is None:
        return []
    return [
        f"batch_size: {batch} windows are {batch // micro} micro-batches, and the interleaved schedule wants a multiple of "
        f"parallel.pipeline {pipeline}; make {'it' if len(sizes) == 1 else 'start and increment'} a multiple of {micro * pipeline}, "
        "or set parallel.virtual_stages to 1"
    ]


def _sound_counts(declared: Any) -> list[int] | None:
    """layers_per_stage as numbers; None where an entry is malformed."""
    if not isinstance(declared, list):
        return None
    counts = [whole(count) for count in declared]
    return counts if all(is_count(count) or (count == 0 and not isinstance(count, bool)) for count in counts) else None
