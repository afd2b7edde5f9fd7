"""A stage in whole global batches: how many steps, how many windows in each. A function of its declaration alone.

A constant batch has ⌊T / (B·S) + 1/2⌋ steps, at least one (T: the stage's tokens, B: windows of a batch, S: tokens of a window).
A ramp over R tokens from b₀ in K increments of Δ is Megatron-LM's, counted in tokens: a step behind c tokens of the stage has

    b₀ + Δ · ⌊K · c / R⌋ windows for c < R,  b₀ + K·Δ from there on,

so a batch that begins within a level has that level's size, also where it ends beyond it. What is left of the stage behind the
ramp is rounded to whole batches as above.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron_codemix.config import BatchRamp, Stage


@dataclass(frozen=True)
class Tread:
    """Steps [first, end) of a stage with one batch size."""

    first: int
    end: int
    size: int
    """Windows of each of its global batches."""
    before: int
    """Windows of the stage before its first."""


@dataclass(frozen=True)
class Staircase:
    """The global batches of one stage. Steps count from 0 within the stage."""

    treads: tuple[Tread, ...]
    sequence_length: int

    @classmethod
    def constant(cls, num_steps: int, size: int, sequence_length: int = 1) -> Staircase:
        """So many batches of one size."""
        return cls((Tread(0, num_steps, size, 0),), sequence_length)

    @classmethod
    def of(cls, stage: Stage) -> Staircase:
        """Of a declared stage, whole."""
        treads: list[Tread] = []
        step = windows = 0
        for size, number in _runs(stage):
            if number > 0:
                treads.append(Tread(step, step + number, size, windows))
                step, windows = step + number, windows + number * size
        return cls(tuple(treads), stage.sequence_length)

    def cut(self, num_steps: int) -> Staircase:
        """Its first `num_steps` steps."""
        kept = [tread for tread in self.treads if tread.first < num_steps]
        last = kept[-1]
        return Staircase((*kept[:-1], Tread(last.first, min(last.end, num_steps), last.size, last.before)), self.sequence_length)

    def as_json(self) -> Any:
        """As plan.json has it: windows of a global batch, or [[first step within the stage, windows], …]."""
        if len(self.treads) == 1:
            return self.treads[0].size
        return [[tread.first, tread.size] for tread in self.treads]

    @property
    def num_steps(self) -> int:
        """Global batches of the stage."""
        return self.treads[-1].end

    @cached_property
    def num_samples(self) -> int:
        """Windows of the stage."""
        return self.samples_before(self.num_steps)

    def tread_at(self, step: int) -> Tread:
        """The tread of a step; at num_steps, the last one."""
        return self.treads[bisect.bisect_right(self.treads, step, key=lambda tread: tread.first) - 1]

    def samples_before(self, step: int) -> int:
        """Windows of the stage before a step (at most num_steps)."""
        tread = self.tread_at(step)
        return tread.before + (step - tread.first) * tread.size

    def tokens_before(self, step: int) -> int:
        """Window tokens of the stage before a step (at most num_steps)."""
        return self.samples_before(step) * self.sequence_length

    def locate(self, sample: int) -> tuple[int, int]:
        """A sample of the stage → its step and its place in the step's batch."""
        tread = self.treads[bisect.bisect_right(self.treads, sample, key=lambda tread: tread.before) - 1]
        step, place = divmod(sample - tread.before, tread.size)
        return tread.first + step, place


def _runs(stage: Stage) -> Iterator[tuple[int, int]]:
    """(windows of a batch, how many such batches), in order."""
    length = stage.sequence_length
    if not isinstance(stage.batch_size, BatchRamp):
        yield stage.batch_size, max(1, _rounded(stage.tokens, stage.batch_size * length))
        return
    ramp, done = stage.batch_size, 0
    for level in range(ramp.levels):
        per_step = (ramp.start + level * ramp.increment) * length
        # batches until K · done ≥ (level + 1) · R
        lacking = (level + 1) * ramp.tokens - done * ramp.levels
        number = max(0, -(-lacking // (per_step * ramp.levels)))
        yield per_step // length, number
        done += number * per_step
    yield ramp.end, _rounded(max(0, stage.tokens - done), ramp.end * length)


def _rounded(tokens: int, per_step: int) -> int:
    """Whole batches nearest to so many tokens, half a batch upwards."""
    return (2 * tokens + per_step) // (2 * per_step)
