"""The learning rate over a stage, as it is declared (train/schedule.py has the formulas)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatron_codemix.config.section import Count, CountOrZero, Section

CONTINUE = "continue"


def _rate(value: Any) -> Any:
    if value == CONTINUE:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a rate is a number, or 'continue' for the rate at which the stage before ended")
    return float(value)


def _positive(value: Any) -> Any:
    rate = _rate(value)
    if rate != CONTINUE and not rate > 0:
        raise ValueError("Input should be greater than 0")
    return rate


def _not_negative(value: Any) -> Any:
    rate = _rate(value)
    if rate != CONTINUE and not rate >= 0:
        raise ValueError("Input should be greater than or equal to 0")
    return rate


class LearningRate(Section):
    """Learning rate over one stage (and those that continue it), as a function of the tokens trained on."""

    shape: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"]
    """constant: peak; linear and cosine: peak → final after warm-up; wsd: peak, then decay → final at the end;
    inverse_sqrt: peak · √(T / (T + t)), t tokens behind warm-up."""
    peak: Annotated[float | Literal["continue"], BeforeValidator(_positive)]
    """Highest learning rate. continue: the rate at which the stage before (of a branch's first stage: the trunk) ended."""
    final: float = Field(default=0.0, ge=0.0)
    """Learning rate at the last step ('constant' and 'inverse_sqrt' have none)."""
    warmup_tokens: CountOrZero = 0
    """Tokens of linear warm-up, at the beginning; rounded up to whole steps."""
    warmup_start: Annotated[float | Literal["continue"], BeforeValidator(_not_negative)] = 0.0
    """Rate at which warm-up begins. continue: the rate at which the stage before ended."""
    decay_tokens: CountOrZero = 0
    """wsd only: tokens of the decay at the end; rounded up to whole steps."""
    decay_shape: Literal["linear", "cosine", "1-sqrt", "exponential"] = "linear"
    """wsd only: form of the decay. 1-sqrt: peak − (peak − final) · √v; exponential: peak · (final / peak)^v."""
    timescale_tokens: Count | None = None
    """inverse_sqrt only: T, in tokens, counted from the end of warm-up; null: the warm-up's."""


def rate_problems(rate: dict[str, Any], first: bool) -> list[str]:
    """Mistakes of one learning rate, each beginning with its field; first: of the run's first stage, which continues nothing."""
    shape, problems = rate.get("shape"), []
    for key in ("peak", "warmup_start"):
        if first and rate.get(key) == CONTINUE:
            problems.append(f"{key}: 'continue' takes on the rate of the stage before, and there is none; give a number")
    problems += _fields_of_shapes(rate, shape)
    peak, final, start = (_number(rate.get(key, 0.0)) for key in ("peak", "final", "warmup_start"))
    peak = peak if peak and peak > 0 else None  # reported by its field
    if peak is not None and final is not None and final > peak:
        problems.append(f"final: {final:g} is above the peak {peak:g}; lower it")
    if peak is not None and start is not None and start > peak:
        problems.append(f"warmup_start: {start:g} is above the peak {peak:g}; lower it")
    if rate.get("warmup_start", 0.0) not in (0, 0.0) and not rate.get("warmup_tokens"):
        problems.append("warmup_start: there is no warm-up that could begin with it; give warmup_tokens, or leave it out")
    return problems


def _fields_of_shapes(rate: dict[str, Any], shape: Any) -> list[str]:
    """Fields that the shape needs, or would pass over; the default is no wish, it stands in every resolved config."""
    problems = []
    if shape == "wsd" and not rate.get("decay_tokens"):
        problems.append("decay_tokens: 'wsd' needs the length of its decay; a tenth of the stage is usual")
    known = shape in ("constant", "linear", "cosine", "inverse_sqrt", "wsd")
    if known and shape != "wsd" and rate.get("decay_tokens"):
        problems.append(f"decay_tokens: only 'wsd' has one, '{shape}' would ignore it; leave it out")
    if known and shape != "wsd" and rate.get("decay_shape", "linear") != "linear":
        problems.append(f"decay_shape: only 'wsd' has one, '{shape}' would ignore it; leave it out")
    if shape == "wsd" and rate.get("decay_shape") == "exponential" and not rate.get("final"):
        problems.append("final: an exponential decay never comes to 0; give the rate at which it shall end")
    if known and shape != "inverse_sqrt" and rate.get("timescale_tokens"):
        problems.append(f"timescale_tokens: only 'inverse_sqrt' has one, '{shape}' would ignore it; leave it out")
    if shape == "inverse_sqrt" and not rate.get("timescale_tokens") and not rate.get("warmup_tokens"):
        problems.append("timescale_tokens: 'inverse_sqrt' needs one where there is no warm-up; give one of the two")
    if shape == "inverse_sqrt" and rate.get("final"):
        problems.append("final: 'inverse_sqrt' has none and would ignore it; leave it out, and cool down in a stage of its own")
    return problems


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
