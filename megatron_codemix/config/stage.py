"""A stage of a run: its mixture, batch, sequence length, objective, and the learning rate over it."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from megatron_codemix.config.batch_size import BatchRamp, first_uneven, ramp_problems, raw_sizes
from megatron_codemix.config.mixing import Mixing
from megatron_codemix.config.objective import Objective, ObjectiveField, objective_problems
from megatron_codemix.config.rate import LearningRate
from megatron_codemix.config.section import AS_SECTION, AS_VALUE, Count, CountOrZero, Section, Share, exact_share, form_of, is_count, whole


class Ramp(Section):
    """A share that moves linearly from the start of a stage to its end."""

    start: Share
    """Share at the first sample of the stage."""
    end: Share
    """Share at the last sample of the stage."""


class Stage(Section):
    """A stretch of training with one mixture, one batch size, one sequence length."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name in logs and plots: letters, digits, '.', '_', '-'."""
    tokens: Count
    """Target tokens to train on, rounded to whole global batches; the plan shows the rounding."""
    mixture: dict[str, Share | Ramp] = Field(min_length=1)
    """Source → share of window tokens; shares sum to 1 (at every point of a ramp)."""
    mixing: Mixing | None = None
    """Competitive or additive mixing, in the place of `tokens` and `mixture`, which it gives; null: they are given."""
    batch_size: Annotated[Annotated[Count, Tag(AS_VALUE)] | Annotated[BatchRamp, Tag(AS_SECTION)], Discriminator(form_of)]
    """Windows per global batch (optimizer step), over all data-parallel ranks; or a ramp."""
    sequence_length: Count
    """Tokens a window predicts."""
    learning_rate: Annotated[
        Annotated[LearningRate, Tag(AS_SECTION)] | Annotated[Literal["continue"], Tag(AS_VALUE)], Discriminator(form_of)
    ]
    """Learning rate over this stage. continue: the schedule of the stage before spans this one as well."""
    objective: ObjectiveField = Objective()
    """`clm`: next-token prediction on every token; or a mapping of what is changed of the windows first: fill-in-the-middle, prefixes, …"""
    restart: bool = False
    """Begin every source at its first sample again instead of continuing where the last stage stopped."""
    begins_at_tokens: CountOrZero | None = None
    """Where the stage begins: must be what the stages before it in this list declare together. Null: not stated."""


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
    batch, micro = stage.get("batch_size"), whole(raw.get("micro_batch_size", 1))
    if isinstance(batch, dict):
        problems += [f"batch_size.{problem}" for problem in ramp_problems(batch, stage.get("tokens"))]
    size = first_uneven(raw_sizes(batch), micro) if is_count(micro) else None
    if size is not None:
        reached = f" (on the ramp from {batch['start']} to {batch['end']})" if isinstance(batch, dict) else ""
        problems.append(f"batch_size: {size}{reached} is not a multiple of micro_batch_size {micro}; change one of them")
    return problems + objective_problems(stage.get("objective"), mixture, raw.get("document_masking"))


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
