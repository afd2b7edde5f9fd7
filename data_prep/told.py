"""How far work has come, told from inside of it: counters that a pool's processes share (data_prep/workers.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_POLL_SECONDS = 0.5


class Told(NamedTuple):
    """What processes have done since the pool began."""

    input_bytes: int
    documents: int
    text_bytes: int


@dataclass
class _Here:
    """Counters of this process: a slice of the pool's, else of its own."""

    counters: Any = field(default_factory=lambda: [0] * len(Told._fields))
    first: int = 0
    on_told: Callable[[], None] | None = None
    next_poll: float = 0.0


_HERE = _Here()


def tell(input_bytes: int = 0, documents: int = 0, text_bytes: int = 0) -> None:
    """Count work that is done, for the progress line; called by what runs in a pool, as often as it likes."""
    counters, first = _HERE.counters, _HERE.first
    counters[first] += input_bytes
    counters[first + 1] += documents
    counters[first + 2] += text_bytes
    if _HERE.on_told is not None and (now := time.monotonic()) >= _HERE.next_poll:
        _HERE.next_poll = now + _POLL_SECONDS
        _HERE.on_told()


def tell_to(counters: Any, first: int, on_told: Callable[[], None] | None = None) -> tuple[Any, int, Callable[[], None] | None]:
    """From now on count in `counters` from `first` on, and call `on_told` about twice a second; returns what was before."""
    before = _HERE.counters, _HERE.first, _HERE.on_told
    _HERE.counters, _HERE.first, _HERE.on_told = counters, first, on_told
    return before
