"""What a task yields: metrics over all items, and the items themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Metrics = dict[str, int | float]


@dataclass(frozen=True)
class Outcome:
    """metrics: name → value, in the order they are shown; items: one JSON object per item, in the data's order."""

    metrics: Metrics
    items: list[dict[str, Any]]


def mean(values: list[float] | list[int] | list[bool]) -> float:
    """Arithmetic mean; 0 items give 0, which the caller's counts make visible."""
    return float(sum(values) / len(values)) if values else 0.0
