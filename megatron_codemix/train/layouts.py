"""The layouts that a model allows on a number of GPUs: every one that validation lets pass, without those that are never better."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_codemix.config import ParallelConfig, RunConfig, data_ranks
from megatron_codemix.config.layout import layout_problems
from megatron_codemix.errors import UserError
from megatron_codemix.train.cost import GPUS_PER_NODE

RECOMPUTES: tuple[dict[str, Any], ...] = (
    {},
    {"granularity": "selective", "modules": ["layernorm"]},
    {"granularity": "selective", "modules": ["core_attn", "layernorm"]},
    {"granularity": "selective", "modules": ["layernorm", "mlp"]},
    {"granularity": "selective", "modules": ["core_attn", "layernorm", "mlp"]},
    {"granularity": "full"},
)
"""From the cheapest to the one that saves most."""
_MOST_WINDOWS = 64


def layouts(config: RunConfig, num_gpus: int) -> Iterator[RunConfig]:
    """The run under every layout of `num_gpus` GPUs, without recompute.

    Tensor parallelism within a node, with sequence parallelism; the distributed optimizer and both overlaps wherever there is
    something to split; stages that are equal, or differ by one layer where there is no other way. Micro-batches are powers of two.
    """
    model = config.model.model_dump(mode="json")
    stages = [stage.model_dump(mode="json") for stage in config.stages]
    for tensor in divisors(num_gpus, GPUS_PER_NODE):
        for pipeline in divisors(num_gpus // tensor, config.model.num_layers):
            uneven = _uneven_stages(config.model.num_layers, pipeline)
            interleaved = divisors(config.model.num_layers // pipeline) if pipeline > 1 and not uneven else [1]
            for context in divisors(num_gpus // (tensor * pipeline)):
                for virtual in interleaved:
                    raw = _parallel(tensor, pipeline, context, virtual, num_gpus) | uneven
                    if not layout_problems({"parallel": raw, "model": model, "stages": stages}):
                        yield from _micro_batches(config, ParallelConfig.model_validate(raw), num_gpus)


def with_recompute(config: RunConfig, recompute: dict[str, Any]) -> RunConfig:
    """The run with another recompute."""
    parallel = ParallelConfig.model_validate({**config.parallel.model_dump(), "recompute": recompute})
    return config.model_copy(update={"parallel": parallel})


def divisors(number: int, most: int | None = None) -> list[int]:
    """Divisors of `number`, at most `most`, ascending."""
    return [divisor for divisor in range(1, min(number, most or number) + 1) if number % divisor == 0]


def _uneven_stages(num_layers: int, pipeline: int) -> dict[str, Any]:
    """`layers_per_stage` where the stages cannot be equal: the last one, which has the output layer, never has more than another,
    and the first, which holds most activations, only when all between have."""
    each, more = divmod(num_layers, pipeline)
    if not more:
        return {}
    heavier = [*range(1, pipeline - 1), 0][:more]
    return {"layers_per_stage": [each + (stage in heavier) for stage in range(pipeline)]}


def _parallel(tensor: int, pipeline: int, context: int, virtual: int, num_gpus: int) -> dict[str, Any]:
    split = num_gpus > tensor * pipeline
    chosen = {
        "tensor": tensor,
        "sequence": tensor > 1,
        "pipeline": pipeline,
        "virtual_stages": virtual,
        "context": context,
        "distributed_optimizer": split,
        "overlap_grad_reduce": split,
        "overlap_param_gather": split,
    }
    defaults = ParallelConfig().model_dump()
    return {key: value for key, value in chosen.items() if value != defaults[key]}


def _micro_batches(config: RunConfig, parallel: ParallelConfig, num_gpus: int) -> Iterator[RunConfig]:
    windows = 1
    while windows <= _MOST_WINDOWS:
        run = config.model_copy(update={"parallel": parallel, "micro_batch_size": windows})
        try:
            data_ranks(run, num_gpus)
        except UserError:
            return  # what windows do not suit, twice as many do not either
        yield run
        windows *= 2
