"""What a run asks of the number of its processes: known with `codemix check --gpus N`, and when they have come."""

from __future__ import annotations

from megatron_codemix.config.batch_size import first_uneven, sizes_of
from megatron_codemix.config.parallel import ParallelConfig
from megatron_codemix.config.run import RunConfig
from megatron_codemix.errors import UserError


def data_degree(parallel: ParallelConfig, world_size: int) -> int:
    """What is left of the world after tensor, pipeline and context. Raises UserError when these do not divide it."""
    model = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model:
        raise UserError(
            f"parallel: tensor {parallel.tensor} × pipeline {parallel.pipeline} × context {parallel.context} = {model} does not divide "
            f"the {world_size} process(es); start a multiple of {model} (--nproc {model}), or lower a degree"
        )
    return world_size // model


def data_ranks(config: RunConfig, world_size: int) -> int:
    """Data-parallel ranks: what is left of the world after tensor, pipeline and context.

    Raises UserError with every mistake: the degrees do not divide the world, a stage's batch does not come out even over the ranks,
    or its micro-batches do not suit the interleaved schedule.
    """
    data = data_degree(config.parallel, world_size)
    problems = [problem for index in range(len(config.stages)) for problem in _batch_problems(config, index, data)]
    if problems:
        raise UserError(*problems)
    return data


def _batch_problems(config: RunConfig, index: int, data: int) -> list[str]:
    declared, micro, parallel = config.stages[index].batch_size, config.micro_batch_size, config.parallel
    sizes, where, each = sizes_of(declared), f"stages[{index}].batch_size", micro * data
    batch, changed = first_uneven(sizes, each), "it" if len(sizes) == 1 else "start and increment"
    if batch is not None:
        return [
            f"{where}: {batch} windows cannot be shared by {data} data-parallel ranks in micro-batches of {micro}; "
            f"make {changed} a multiple of {each}, or change micro_batch_size or the layout"
        ]
    batch = first_uneven(sizes, each * parallel.pipeline)
    if parallel.virtual_stages > 1 and batch is not None:
        return [
            f"{where}: {batch} windows are {batch // each} micro-batches on each of {data} data-parallel ranks, and the interleaved "
            f"schedule wants a multiple of parallel.pipeline {parallel.pipeline}; make {changed} a multiple of {each * parallel.pipeline}, "
            "or set parallel.virtual_stages to 1"
        ]
    return []
