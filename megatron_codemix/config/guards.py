"""Guards: what a run does about figures that are no numbers, loss spikes, slow ranks and garbage collection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from megatron_codemix.config.section import Count, CountOrZero, Section, whole


class SpikeGuard(Section):
    """A loss, or a gradient norm, far above those before it.

    Far is median + sigmas · spread of the steps before. The spread is 1.4826 · the median absolute deviation, which is the
    standard deviation where figures are normal and is not moved by the spikes themselves, but no less than 1 % of the median.
    """

    action: Literal["log", "skip", "rewind"] = "log"
    """log: say so and go on; skip: leave this update out; rewind: go back to a checkpoint and leave out the batches around it."""
    of: Literal["loss", "grad_norm", "either"] = "loss"
    """Which figure is watched."""
    window: Annotated[int, BeforeValidator(whole), Field(ge=8)] = 128
    """Steps that it is compared with, of the same stage; nothing is a spike before half of them are there."""
    sigmas: float = Field(default=6.0, gt=0.0)
    """How many spreads above the median is a spike."""


class GuardsConfig(Section):
    """What a run does when something goes wrong, and what it looks after on all ranks together."""

    non_finite: Literal["stop", "skip", "rewind"] = "stop"
    """When loss or gradient norm is NaN or infinite (the update is never made). stop: end the job; skip and rewind: as for spikes."""
    spike: SpikeGuard = SpikeGuard()
    """Loss spikes."""
    max_skips: Count = 100
    """Updates that may be left out one by one in a run; with one more it stops."""
    max_rewinds: Count = 5
    """Times that a run may go back; once more and it stops."""
    skip_before: CountOrZero = 100
    """Rewind: steps before the fault whose batches are left out (fewer where the oldest checkpoint there is came later)."""
    skip_after: Count = 100
    """Rewind: steps left out from the fault on, its own among them."""
    ranks_every_steps: CountOrZero = 100
    """Steps between reports of the slowest rank and of the most memory that any rank has held; 0: none."""
    collect_garbage_every_steps: CountOrZero = 0
    """Python collects its garbage at these steps, on all ranks at once, and at no other time; 0: whenever each process likes."""
