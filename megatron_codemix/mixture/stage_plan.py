"""One stage of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from megatron_codemix.config import LearningRate, Objective
from megatron_codemix.mixture.interleave import Interleaving
from megatron_codemix.mixture.staircase import Staircase


@dataclass(frozen=True)
class StagePlan:
    """A stage in whole global batches. Arrays have one entry per source of the plan."""

    index: int
    place: str
    """Of its declaration in the config, as "stages[0]"."""
    name: str
    first_step: int
    batches: Staircase
    """Its global batches: of a trunk's stage, those before the branch."""
    sequence_length: int
    declared_tokens: int
    """Tokens the config asks for; `tokens` is what whole batches make of it."""
    learning_rate: LearningRate | Literal["continue"]
    restart: bool
    mixture: dict[str, Any]
    """Source → share as a fraction, or {"start", "end"}, as written to plan.json."""
    members: np.ndarray
    """int64: indices of the sources with a share, in the interleaving's order."""
    interleaving: Interleaving
    windows: np.ndarray
    """int64: windows of one epoch at this sequence length; 0 for a source that the stage does not read."""
    cursors: np.ndarray
    """int64: samples of each source that lie behind the stage's first, in windows of this sequence length."""
    drawn: np.ndarray
    """int64: windows the stage reads."""
    overlap: tuple[Fraction, ...]
    """Expected windows of this stage whose tokens were read before in the same epoch, cut at another length."""
    objective: Objective
    """What is changed of the stage's windows before they are trained on."""

    targets: tuple[Fraction, ...]
    """Exact sum of the members' shares over the stage, in samples."""
    whole: Staircase
    """Its global batches as declared: more than `batches` where a branch left it."""
    inherited: bool
    """Whether it is a trunk's."""

    @property
    def num_steps(self) -> int:
        """Global batches of the stage."""
        return self.batches.num_steps

    @property
    def num_samples(self) -> int:
        """Windows of the stage."""
        return self.batches.num_samples

    @property
    def batch_size(self) -> int:
        """Windows of a global batch; where it is ramped, of the largest (`batch_size_at` says a step's)."""
        return self.batches.treads[-1].size

    @property
    def end_step(self) -> int:
        """The step behind the stage's last."""
        return self.first_step + self.num_steps

    @property
    def tokens(self) -> int:
        """Window tokens (targets) of the stage."""
        return self.num_samples * self.sequence_length

    def batch_size_at(self, step: int) -> int:
        """Windows of the global batch of a step of the plan."""
        return self.batches.tread_at(step - self.first_step).size

    def same_batch_until(self, step: int) -> int:
        """The first step of the plan behind `step` whose batch has another size, or the stage's end."""
        return self.first_step + self.batches.tread_at(step - self.first_step).end

    def samples_before(self, step: int) -> int:
        """Windows of the stage before a step of the plan (in [first_step, end_step])."""
        return self.batches.samples_before(step - self.first_step)

    def tokens_before(self, step: int) -> int:
        """Window tokens of the stage before a step of the plan (in [first_step, end_step])."""
        return self.batches.tokens_before(step - self.first_step)

    def counts(self, step: int) -> np.ndarray:
        """Samples of each source that the stage has drawn before `step` (in [first_step, end_step])."""
        counts = np.zeros(len(self.windows), np.int64)
        counts[self.members] = self.interleaving.counts(self.samples_before(step))
        return counts
