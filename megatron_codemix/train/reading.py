"""What a run's nodes read of its shards, for `codemix check`: counted from the plan, not estimated."""

from __future__ import annotations

import numpy as np

from megatron_codemix.config import RunConfig
from megatron_codemix.mixture.assignment import ByShard, InOrder, shards_of
from megatron_codemix.train.cost import GPUS_PER_NODE
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.space import size_words

_MOST_SAMPLES = 1 << 21
"""Samples to look up, in about a second; of longer runs the first so many."""


def nodes_of(config: RunConfig, data: int) -> list[tuple[int, ...]]:
    """The data-parallel ranks of each node of GPUS_PER_NODE processes, in megatron-core's order of ranks."""
    parallel = config.parallel
    inner = parallel.tensor * parallel.context
    ranks = range(inner * data * parallel.pipeline)
    nodes = [ranks[first : first + GPUS_PER_NODE] for first in range(0, len(ranks), GPUS_PER_NODE)]
    return [tuple(sorted({rank // inner % data for rank in node})) for node in nodes]


def reading_lines(config: RunConfig, inputs: Inputs, data: int) -> list[str]:
    """How shards are read, and how many bytes of them each node does, a fact a line."""
    plan, nodes = inputs.plan, nodes_of(config, data)
    wanted = sorted(set(nodes))
    shard_bytes, window_bytes, steps = _read(config, inputs, data, wanted)
    order = "windows of all shards" if plan.block_shards is None else f"windows of {plan.block_shards} shards at a time"
    ranks = "samples grouped by shard" if config.data.assignment == "shard" else "samples in turn"
    total = sum(reader.manifest.shards[shard].size for reader in inputs.readers.values() for shard in range(len(reader.manifest.shards)))
    span = "in the run" if steps == plan.num_steps else f"in the first {steps:,} of {plan.num_steps:,} steps"
    lines = [
        f"reading           order {config.data.order}: {order}; assignment {config.data.assignment}: ranks take {ranks}",
        f"                  each of {len(nodes)} node(s) reads up to {size_words(max(window_bytes))} of windows {span}, "
        f"out of up to {size_words(max(shard_bytes))} of shards; all shards: {size_words(total)}",
    ]
    cache = config.data.cache
    if cache is not None and any(reader.place.in_store for reader in inputs.readers.values()):
        lines.append(f"                  shards of a store are fetched whole, into a cache of {size_words(cache.bytes)} in {cache.folder}")
    return lines


def _read(config: RunConfig, inputs: Inputs, data: int, nodes: list[tuple[int, ...]]) -> tuple[list[int], list[int], int]:
    """By node: bytes of the shards it touches, once an epoch, and of the windows it reads; and the steps looked at."""
    plan, readers = inputs.plan, inputs.readers
    by_shard = config.data.assignment == "shard"
    assignment = ByShard(data, readers) if by_shard else InOrder(data, config.micro_batch_size)
    touched: list[set[int]] = [set() for _ in nodes]
    window_bytes = [0] * len(nodes)
    item = next(iter(readers.values())).manifest.dtype.itemsize
    step = samples = 0
    while step < plan.num_steps and samples < _MOST_SAMPLES:
        stage = plan.stage_at(step)
        batch = stage.batch_size_at(step)
        steps = range(step, min(step + max(1, (1 << 14) // batch), stage.same_batch_until(step)))
        read = plan.samples(step, len(steps))
        source = read.source.astype(np.int64)
        shard = shards_of(plan, readers, source, read.window, stage.sequence_length)
        code = (source << 52) | (read.epoch.astype(np.int64) << 32) | shard
        for index, ranks in enumerate(nodes):
            rows = np.concatenate([assignment.rows(plan, steps, rank) for rank in ranks])
            touched[index].update(np.unique(code[rows]).tolist())
            window_bytes[index] += len(rows) * (stage.sequence_length + 1) * item
        step, samples = steps.stop, samples + len(source)
    names = plan.sources
    shard_bytes = [sum(readers[names[one >> 52]].manifest.shards[one & 0xFFFFFFFF].size for one in codes) for codes in touched]
    return shard_bytes, window_bytes, step
