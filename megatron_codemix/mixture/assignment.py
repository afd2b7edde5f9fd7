"""Which samples of a global batch a data-parallel rank takes. The set of samples of a step is the same either way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from megatron_codemix.mixture.plan import Plan


class Sharded(Protocol):
    """What is asked of a source; `shards.SplitReader` has it."""

    def shards_of(self, ids: np.ndarray, sequence_length: int) -> np.ndarray:
        """The shard of each window."""
        ...


class InOrder:
    """Micro-batch m of rank r holds the samples [m · dp_size + r] · micro_batch_size … of the step, in the plan's order."""

    def __init__(self, dp_size: int, micro_batch_size: int) -> None:
        self._dp_size, self._micro_batch_size = dp_size, micro_batch_size

    def rows(self, plan: Plan, steps: range, dp_rank: int) -> np.ndarray:
        """Places of a rank's samples, (n,), in the batches of some steps of equal size, put end to end."""
        number = len(steps) * plan.stage_at(steps.start).batch_size_at(steps.start)
        return np.arange(number).reshape(-1, self._dp_size, self._micro_batch_size)[:, dp_rank].ravel()


class ByShard:
    """The samples of a step sorted by source and shard; rank r takes the r-th of dp_size equal parts.

    Of the shards that a step reads, a rank touches about one dp_size-th, and so do the ranks of a node together, whose numbers
    are neighbours: what a node has to fetch shrinks with the number of nodes.
    """

    def __init__(self, dp_size: int, readers: Mapping[str, Sharded]) -> None:
        self._dp_size, self._readers = dp_size, readers

    def rows(self, plan: Plan, steps: range, dp_rank: int) -> np.ndarray:
        """Places of a rank's samples, (n,), in the batches of some steps of equal size, put end to end."""
        samples = plan.samples(steps.start, len(steps))
        shard = shards_of(plan, self._readers, samples.source, samples.window, plan.stage_at(steps.start).sequence_length)
        step = np.arange(len(shard)) * len(steps) // len(shard)
        order = np.lexsort((samples.window, shard, samples.source, step))  # by step first; by window last, so that disks read forwards
        return order.reshape(len(steps), self._dp_size, -1)[:, dp_rank].ravel()


Assignment = InOrder | ByShard


def shards_of(plan: Plan, readers: Mapping[str, Sharded], source: np.ndarray, window: np.ndarray, sequence_length: int) -> np.ndarray:
    """The shard, within its source, of each sample: (n,) int64."""
    shard = np.empty(len(source), np.int64)
    for number in np.unique(source).tolist():
        here = source == number
        shard[here] = readers[plan.sources[number]].shards_of(window[here], sequence_length)
    return shard
