"""The global batch of a stage: a constant, or a staircase over the stage's first tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_codemix.config.section import Count, Section, is_count, whole


class BatchRamp(Section):
    """A global batch that grows in equal steps: as Megatron-LM's ramp-up, but counted in tokens."""

    start: Count
    """Windows of the stage's first global batches."""
    end: Count
    """Windows of a global batch from the ramp's end on."""
    increment: Count
    """Windows that each step of the staircase adds; divides end − start."""
    tokens: Count
    """Target tokens over which it grows, from the stage's beginning; each size but the last gets an equal part."""

    @property
    def levels(self) -> int:
        """Sizes before the last."""
        return (self.end - self.start) // self.increment

    @property
    def sizes(self) -> range:
        """Every size, ascending."""
        return range(self.start, self.end + 1, self.increment)


def sizes_of(batch_size: int | BatchRamp) -> range:
    """Every size that a declared batch has, ascending."""
    return batch_size.sizes if isinstance(batch_size, BatchRamp) else range(batch_size, batch_size + 1)


def raw_sizes(batch_size: Any) -> range:
    """As `sizes_of`, of a raw value; empty where it is malformed, which its fields report."""
    if not isinstance(batch_size, dict):
        size = whole(batch_size)
        return range(size, size + 1) if is_count(size) else range(0)
    start, end, increment = (whole(batch_size.get(key)) for key in ("start", "end", "increment"))
    if not (is_count(start) and is_count(end) and is_count(increment)) or start >= end or (end - start) % increment:
        return range(0)
    return range(start, end + 1, increment)


def first_uneven(sizes: range, divisor: int) -> int | None:
    """The first size that `divisor` does not divide; None where it divides all."""
    return next((size for size in sizes if size % divisor), None)


def ramp_problems(ramp: dict[str, Any], stage_tokens: Any) -> Iterator[str]:
    """Mistakes of one ramp, each beginning with its field."""
    start, end, increment, tokens = (whole(ramp.get(key)) for key in ("start", "end", "increment", "tokens"))
    if is_count(start) and is_count(end):
        if start >= end:
            yield f"end: {end} is not above start {start}; raise it, or give batch_size as one number"
        elif is_count(increment) and (end - start) % increment:
            yield f"increment: {increment} does not divide end − start = {end - start}; choose a divisor"
    length = whole(stage_tokens)
    if is_count(tokens) and is_count(length) and tokens > length:
        yield f"tokens: the ramp's {tokens:,} are more than the stage's {length:,}; shorten it, or let a stage of its own follow"
