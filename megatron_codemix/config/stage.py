"""A stage of a run: its mixture, batch, sequence length, objective, and the learning rate over it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import Field

from megatron_codemix.config.section import Count, CountOrZero, Section, Share, exact_share, is_count, whole


class Ramp(Section):
    """A share that moves linearly from the start of a stage to its end."""

    start: Share
    """Share at the first sample of the stage."""
    end: Share
    """Share at the last sample of the stage."""


class LearningRate(Section):
    """Learning rate over one stage, as a function of the stage's optimizer steps."""

    shape: Literal["constant", "linear", "cosine", "wsd"]
    """constant: peak; linear and cosine: peak → final after warm-up; wsd: peak, then linear → final at the end."""
    peak: float = Field(gt=0.0)
    """Highest learning rate."""
    final: float = Field(default=0.0, ge=0.0)
    """Learning rate at the stage's last step (ignored by 'constant')."""
    warmup_tokens: CountOrZero = 0
    """Tokens of linear warm-up from 0, at the stage's beginning; rounded up to whole steps."""
    decay_tokens: CountOrZero = 0
    """wsd only: tokens of the linear decay at the stage's end; rounded up to whole steps."""


class Stage(Section):
    """A stretch of training with one mixture, one batch size, one sequence length."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name in logs and plots: letters, digits, '.', '_', '-'."""
    tokens: Count
    """Target tokens to train on, rounded to whole global batches; the plan shows the rounding."""
    mixture: dict[str, Share | Ramp] = Field(min_length=1)
    """Source → share of window tokens; shares sum to 1 (at every point of a ramp)."""
    batch_size: Count
    """Windows per global batch (optimizer step), over all data-parallel ranks."""
    sequence_length: Count
    """Tokens a window predicts."""
    learning_rate: LearningRate
    """Learning rate over this stage."""
    objective: Literal["clm"] = "clm"
    """clm: next-token prediction on every token."""
    restart: bool = False
    """Begin every source at its first sample again instead of continuing where the last stage stopped."""


def stage_problems(stage: dict[str, Any], sources: dict[str, Any] | None, raw: dict[str, Any]) -> list[str]:
    """Mistakes of one stage, each beginning with its path inside the stage; raw: the whole run."""
    problems = []
    mixture = stage.get("mixture")
    if isinstance(mixture, dict):
        for name in mixture:
            if sources is not None and name not in sources:
                known = ", ".join(map(str, sources))
                problems.append(f"mixture.{name}: no source of that name; declare it under 'sources' or use one of: {known}")
        for point in ("start", "end"):
            total = _total(mixture, point)
            if total is not None and total != 1:
                where = "" if not any(isinstance(value, dict) for value in mixture.values()) else f" at the {point} of the stage"
                problems.append(f"mixture: shares sum to {float(total):g}{where}, not 1; write thirds as '1/3'")
                if not where:
                    break
    batch, micro = whole(stage.get("batch_size")), whole(raw.get("micro_batch_size", 1))
    if is_count(batch) and is_count(micro) and batch % micro:
        problems.append(f"batch_size: {batch} is not a multiple of micro_batch_size {micro}; change one of them")
    rate = stage.get("learning_rate")
    if isinstance(rate, dict):
        if rate.get("shape") == "wsd" and not rate.get("decay_tokens"):
            problems.append("learning_rate.decay_tokens: 'wsd' needs the length of its decay; a tenth of the stage is usual")
        if rate.get("shape") in ("constant", "linear", "cosine") and rate.get("decay_tokens"):
            problems.append(f"learning_rate.decay_tokens: only 'wsd' has one, '{rate['shape']}' would ignore it; leave it out")
        peak, final = rate.get("peak"), rate.get("final", 0.0)
        if all(isinstance(value, (int, float)) for value in (peak, final)) and final > peak:
            problems.append(f"learning_rate.final: {final:g} is above the peak {peak:g}; lower it")
        lengths = [rate.get("warmup_tokens", 0), rate.get("decay_tokens", 0), stage.get("tokens")]
        if all(isinstance(value, (int, float)) for value in lengths) and lengths[0] + lengths[1] > lengths[2]:
            problems.append("learning_rate: warm-up and decay together are longer than the stage; shorten them")
    return problems


def _total(mixture: dict[str, Any], point: str) -> Fraction | None:
    """Sum of the shares at the start or end of a stage; None when a share is malformed."""
    total = Fraction(0)
    for value in mixture.values():
        share = value.get(point) if isinstance(value, dict) else value
        try:
            total += exact_share(share)  # type: ignore[arg-type]
        except (ValueError, ZeroDivisionError):
            return None
    return total
