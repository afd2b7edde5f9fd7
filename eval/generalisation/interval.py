"""Mean, standard error and t interval over fine-tuning seeds; without SciPy, which an evaluation environment may lack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """stderr, low and high are None for one value, low and high also for equal ones. The interval is not cut at 0 or 1."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean ± t·s/√n, with s the standard deviation over n - 1 degrees of freedom (Student 1908).

    Values that are all the same (every seed at 0) say nothing of how far another may fall: an interval of no width would.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, None, None, None)
    if len(set(values)) == 1:
        return Interval(mean, 0.0, None, None)
    stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    reach = t_quantile(count - 1) * stderr
    return Interval(mean, stderr, mean - reach, mean + reach)


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """t with P(-t < T < t) = level, by bisection."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(-t < T < t) for whole degrees of freedom (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    if degrees % 2 == 0:
        term = total = 1.0
        for k in range(1, degrees // 2):
            term *= cosine2 * (2 * k - 1) / (2 * k)
            total += term
        return math.sin(angle) * total
    if degrees == 1:
        return 2 * angle / math.pi
    term = total = math.cos(angle)
    for k in range(1, (degrees - 1) // 2):
        term *= cosine2 * 2 * k / (2 * k + 1)
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total)
