"""The learning rate as a pure function of the declared stages and the step.

A schedule spans one stage, or one and those that continue it. It has N optimizer steps; e(t) counts the tokens from its beginning
to the end of update t (0 ≤ t < N), e(−1) = 0. W is the smallest number of first steps with `warmup_tokens` together, D the
smallest number of last steps with `decay_tokens` together (shortened to N − W). With s = warmup_start, update t uses

    warm-up        t < W        s + (peak − s) · e(t) / e(W − 1)      so the first update is not wasted on a rate of 0
    constant       t ≥ W        peak
    linear         t ≥ W        peak + (final − peak) · u
    cosine         t ≥ W        final + (peak − final) · (1 + cos πu) / 2    (SGDR, arXiv 1608.03983, equation 5)
    wsd            t ≥ W        peak for t < N − D, then by decay_shape      (arXiv 2404.06395, section 4.1; arXiv 2405.18392)
        linear                  peak + (final − peak) · v
        cosine                  final + (peak − final) · (1 + cos πv) / 2
        1-sqrt                  final + (peak − final) · (1 − √v)            (arXiv 2405.18392, section 4)
        exponential             peak · (final / peak)^v
    inverse_sqrt   t ≥ W        peak · √(T / (T + e(t) − e(p)))              (arXiv 1706.03762, section 5.3)

    p = max(W − 1, 0), the last step of warm-up;   T = timescale_tokens, else e(W − 1)
    u = (e(t) − e(p)) / (e(N − 1) − e(p));   v = (e(t) − e(N − 1 − D)) / (e(N − 1) − e(N − 1 − D))

so that linear, cosine and wsd are exactly `final` at the last step and, after warm-up, exactly `peak` at step p. A schedule
without a step after p stays at peak. Tokens decide, so a ramped batch changes the steps and not the curve; where all batches are of
one size, the quotients are those of the steps, to the last bit.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from megatron_codemix.config import LearningRate, RunConfig, Stage
from megatron_codemix.config.rate import CONTINUE
from megatron_codemix.errors import UserError
from megatron_codemix.mixture.staircase import Staircase


@dataclass(frozen=True)
class Curve:
    """One schedule over its steps, numbered from 0."""

    rate: LearningRate
    num_steps: int
    tokens_before: Callable[[int], int]
    """Step (0 to num_steps) → tokens of the schedule before it."""
    last: float = 0.0
    """The rate of the update before the schedule's first, for what continues it."""

    @cached_property
    def peak(self) -> float:
        """As declared, or the last rate before."""
        return self.last if self.rate.peak == CONTINUE else float(self.rate.peak)

    @cached_property
    def warmup(self) -> int:
        """Steps of warm-up (W)."""
        return bisect.bisect_left(range(self.num_steps), self.rate.warmup_tokens, key=self.tokens_before)

    @cached_property
    def decay(self) -> int:
        """Steps of a wsd schedule's decay (D)."""
        until = self.tokens_before(self.num_steps) - self.rate.decay_tokens
        first = bisect.bisect_right(range(self.num_steps + 1), until, key=self.tokens_before) - 1
        return self.num_steps - max(first, self.warmup)

    def at(self, step: int) -> float:
        """Rate of update `step`. Raises ValueError when it is not one of the schedule's."""
        if not 0 <= step < self.num_steps:
            raise ValueError(f"step {step} is not in a stage of {self.num_steps} steps; steps count from 0 within their stage")
        peak, shape = self.peak, self.rate.shape
        if step < self.warmup:
            start = self.last if self.rate.warmup_start == CONTINUE else float(self.rate.warmup_start)
            return _between(start, peak, self._part(step, -1, self.warmup - 1))
        top = max(self.warmup - 1, 0)
        if shape == "wsd":
            return self._decayed(self._part(step, self.num_steps - 1 - self.decay, self.num_steps - 1))
        if shape == "inverse_sqrt":
            timescale = self.rate.timescale_tokens or self._tokens(self.warmup - 1)
            return peak * math.sqrt(timescale / (timescale + self._tokens(step) - self._tokens(top)))
        part = self._part(step, top, self.num_steps - 1)
        if shape == "linear":
            return _between(peak, self.rate.final, part)
        if shape == "cosine":
            return _between(peak, self.rate.final, (1.0 - math.cos(math.pi * part)) / 2.0)
        return peak

    def _decayed(self, part: float) -> float:
        peak, final = self.peak, self.rate.final
        if self.rate.decay_shape == "exponential":
            return final if part == 1.0 else peak * (final / peak) ** part
        if self.rate.decay_shape == "cosine":
            part = (1.0 - math.cos(math.pi * part)) / 2.0
        elif self.rate.decay_shape == "1-sqrt":
            part = math.sqrt(part)
        return _between(peak, final, part)

    def _tokens(self, step: int) -> int:
        """e(step)."""
        return self.tokens_before(step + 1)

    def _part(self, step: int, first: int, last: int) -> float:
        """How far `step` is from `first` to `last`, in tokens: 0 up to `first`, exactly 1 at `last`."""
        whole = self._tokens(last) - self._tokens(first)
        return max(self._tokens(step) - self._tokens(first), 0) / whole if whole > 0 else 0.0


class Schedule:
    """The learning rate of every step of a run, those of its trunks included. A function of the config alone."""

    def __init__(self, config: RunConfig) -> None:
        """Raises UserError where a stage continues a rate that it cannot."""
        self._firsts: list[int] = []
        self._curves: list[Curve] = []
        parts = [(part.stages, part.until, "branch.history: ") for part in (config.branch.history or [])] if config.branch else []
        begins = 0
        for stages, until, where in [*parts, (config.stages, None, "")]:
            self._append(stages, begins, where)
            begins = until or 0

    def at(self, step: int) -> float:
        """Learning rate of update `step` (0-based, of the whole run)."""
        index = bisect.bisect_right(self._firsts, step) - 1
        return self._curves[index].at(step - self._firsts[index])

    def turns(self, first: int, end: int) -> set[int]:
        """Steps of [first, end), not empty, among which the highest rate is: the first, the last, and where warm-up has ended."""
        index = bisect.bisect_right(self._firsts, first) - 1
        top = self._firsts[index] + max(self._curves[index].warmup - 1, 0)
        return {first, end - 1, min(max(top, first), end - 1)}

    def _append(self, stages: list[Stage], first_step: int, where: str) -> None:
        """The schedules of one run's stages, which begin at `first_step`, where the parent was left."""
        last = self.at(first_step - 1) if first_step else 0.0
        while self._firsts and self._firsts[-1] >= first_step:  # of the parent, behind where it was left
            self._firsts.pop()
            self._curves.pop()
        index = 0
        while index < len(stages):
            end = next((at for at in range(index + 1, len(stages)) if stages[at].learning_rate != CONTINUE), len(stages))
            rate = stages[index].learning_rate
            assert isinstance(rate, LearningRate), "validation refuses a first stage that continues a schedule"
            steps = _Steps([Staircase.of(stage) for stage in stages[index:end]])
            curve = Curve(rate, steps.num_steps, steps.tokens_before, last)
            _require_sound(curve, f"{where}stages[{index}].learning_rate")
            self._firsts.append(first_step)
            self._curves.append(curve)
            first_step, last, index = first_step + curve.num_steps, curve.at(curve.num_steps - 1), end


class _Steps:
    """The steps of several stages, end to end."""

    def __init__(self, stages: list[Staircase]) -> None:
        self._stages = stages
        self._firsts, self._tokens = [0], [0]
        for stage in stages:
            self._firsts.append(self._firsts[-1] + stage.num_steps)
            self._tokens.append(self._tokens[-1] + stage.tokens_before(stage.num_steps))
        self.num_steps = self._firsts[-1]

    def tokens_before(self, step: int) -> int:
        """Tokens of the stages before a step (at most num_steps)."""
        index = min(bisect.bisect_right(self._firsts, step) - 1, len(self._stages) - 1)
        return self._tokens[index] + self._stages[index].tokens_before(step - self._firsts[index])


def _require_sound(curve: Curve, where: str) -> None:
    """Refuse what only shows when 'continue' has become a number."""
    rate, peak = curve.rate, curve.peak
    if peak <= 0.0:
        raise UserError(f"{where}.peak: the stage before ends at a rate of 0, which nothing can continue; give a number")
    if rate.shape not in ("constant", "inverse_sqrt") and rate.final > peak:
        raise UserError(f"{where}.final: {rate.final:g} is above the rate {peak:g} at which the stage before ends; lower it")


def warmup_steps(rate: LearningRate, num_steps: int, tokens_per_step: int) -> int:
    """Steps of warm-up (W): its tokens rounded up to whole steps, at most the stage."""
    return _constant(rate, num_steps, tokens_per_step).warmup


def decay_steps(rate: LearningRate, num_steps: int, tokens_per_step: int) -> int:
    """Steps of a wsd stage's decay (D): its tokens rounded up to whole steps, shortened to what warm-up leaves."""
    return _constant(rate, num_steps, tokens_per_step).decay


def learning_rate(rate: LearningRate, step: int, num_steps: int, tokens_per_step: int) -> float:
    """Learning rate of update `step` (0-based within its stage) of a stage of `num_steps` steps of one size.

    Raises ValueError when `step` is not one of the stage's.
    """
    return _constant(rate, num_steps, tokens_per_step).at(step)


def _constant(rate: LearningRate, num_steps: int, tokens_per_step: int) -> Curve:
    return Curve(rate, num_steps, lambda step: step * tokens_per_step)


def _between(start: float, end: float, part: float) -> float:
    # clamped, because a·x + b·(1−x) can leave [a, b] by one rounding
    value = end * part + start * (1.0 - part)
    return min(max(value, min(start, end)), max(start, end))
