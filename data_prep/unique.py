"""Are the ids of a source's documents all different?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST = 1 << 16


class UniqueIds:
    """The ids seen so far, at 8 bytes each. They are looked through whenever they have doubled: a repetition is told
    early, and the whole costs little more than sorting them once."""

    def __init__(self) -> None:
        self._parts = [np.empty(0, np.uint64)]
        self._size = 0
        self._next = _LEAST

    def add(self, ids: Sequence[int]) -> int | None:
        """Take more ids, 0 … 2⁶⁴−1; returns one that is known to be repeated."""
        self._parts.append(np.array(ids, np.uint64))
        self._size += len(ids)
        if self._size < self._next:
            return None
        self._next = 2 * self._size
        return self.repeated()

    def repeated(self) -> int | None:
        """The smallest of the ids that came more than once, or None."""
        ids = np.concatenate(self._parts)
        ids.sort()
        self._parts = [ids]
        places = np.flatnonzero(ids[1:] == ids[:-1])
        return int(ids[places[0]]) if places.size else None
