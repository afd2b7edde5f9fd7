"""The last steps' losses and gradient norms, and what is usual for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_MAD_TO_DEVIATION = 1.4826
"""1 / Φ⁻¹(3/4): the standard deviation of normal figures over their median absolute deviation."""
_LEAST_SPREAD = 0.01
"""Of the median: figures that hardly move (a model that has learnt a toy by heart) make no spike of every ripple."""


class Usual(NamedTuple):
    """What a figure has lately been."""

    median: float
    spread: float
    """1.4826 · median absolute deviation."""

    def excess(self, value: float) -> float:
        """How many spreads a value lies above the median; a spread is at least 1 % of the median."""
        return (value - self.median) / max(self.spread, _LEAST_SPREAD * abs(self.median), 1e-12)


class History:
    """The last `window` finite values of a figure, oldest first."""

    def __init__(self, window: int, values: Sequence[float] = ()) -> None:
        self._values: deque[float] = deque((float(value) for value in values), maxlen=window)
        self._usual: Usual | None = None

    def add(self, value: float) -> None:
        """Remember a value; what is not finite says nothing of what is usual, and is not kept."""
        if math.isfinite(value):
            self._values.append(value)
            self._usual = None

    def clear(self) -> None:
        """Forget all: what comes is of another kind."""
        self._values.clear()
        self._usual = None

    @property
    def usual(self) -> Usual | None:
        """Median and spread of what is remembered; None before anything is."""
        if self._usual is None and self._values:
            middle = median(self._values)
            self._usual = Usual(middle, _MAD_TO_DEVIATION * median(abs(value - middle) for value in self._values))
        return self._usual

    @property
    def judges(self) -> bool:
        """Whether there is enough to compare with: half of the window."""
        return 2 * len(self._values) >= (self._values.maxlen or 0)

    @property
    def values(self) -> list[float]:
        """What is remembered, oldest first."""
        return list(self._values)
