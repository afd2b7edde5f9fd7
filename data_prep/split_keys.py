"""The groups that would be held out first: how many there are, and from which share on one of them is held out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

MOST_KEYS = 256
"""Of a source with more groups only the least keys are kept, and their number is not known."""
_RANGE = 2**64


class LeastKeys:
    """The least `split_key`s of a source's groups: the same in whatever order they come and are brought together."""

    def __init__(self, keys: Iterable[int] = ()) -> None:
        self._held: set[int] = set()
        self._heap: list[int] = []
        for key in keys:
            self.add(key)

    def add(self, key: int) -> None:
        """Consider a group's key, as often as it comes."""
        if key in self._held:
            return
        if len(self._heap) < MOST_KEYS:
            heapq.heappush(self._heap, -key)
        elif key < -self._heap[0]:
            self._held.remove(-heapq.heapreplace(self._heap, -key))
        else:
            return
        self._held.add(key)

    def __len__(self) -> int:
        return len(self._held)

    def sorted(self) -> list[int]:
        """From the least one on."""
        return sorted(self._held)

    @property
    def counted(self) -> str:
        """'1 group', '8 groups', or 'at least 256 groups'."""
        return f"{'at least ' if len(self) == MOST_KEYS else ''}{len(self)} group{'s' if len(self) > 1 else ''}"

    def least_share(self) -> str | None:
        """The split.validation of fewest digits that holds out the first group and no other; None where there are not two groups.

        Below 1, as the second key is below 2^64.
        """
        if len(self) < 2:
            return None
        first, second = self.sorted()[:2]
        for digits in range(2, 20):
            share = f"{(first * 10**digits // _RANGE + 1) / 10**digits:.{digits}f}"
            if first < float(share) * _RANGE <= second:
                return share
        return None
