"""gigatoken, kept within bounds.

It remembers every word it has seen, without limit (some 7 bytes for each byte of words never seen before), and is fastest
with what it remembers. It is therefore made anew, from its parsed form, when the process has grown by more than a bound while
it worked; ids do not depend on that. Called a document at a time: its own batch call was measured at half the speed.
"""

from __future__ import annotations

import resource
from pathlib import Path

import gigatoken
import numpy as np

_MAX_GROWTH = 96 << 20
_MAX_BYTES = 64 << 20
_STATM = Path("/proc/self/statm")


def _resident() -> int | None:
    """Bytes of memory this process holds; None where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return None


class FastEngine:
    """A gigatoken tokenizer whose memory is bounded. Raises ValueError when gigatoken has no such kind."""

    def __init__(self, form: str) -> None:
        """form: contents of a tokenizer.json."""
        self._form = form
        self._growth = self._characters = 0
        self._before: int | None = None
        self._engine = gigatoken.Tokenizer.from_json(form).backend
        self.encode = self._engine.encode
        """Text → 1-d uint32 ids."""

    def __enter__(self) -> FastEngine:
        """Around a batch: memory is looked at before and behind it."""
        self._before = _resident()
        return self

    def __exit__(self, *_: object) -> None:
        after = _resident()
        if self._before is not None and after is not None:
            self._growth += max(0, after - self._before)
        if self._growth > _MAX_GROWTH or (after is None and self._characters > _MAX_BYTES):
            self._forget()

    def _forget(self) -> None:
        del self.encode, self._engine  # the old one's memory first
        self.__init__(self._form)

    def count(self, characters: int) -> None:
        """Told what was encoded, for systems that do not say how large a process is."""
        self._characters += characters


def ids_of(values: list[int]) -> np.ndarray:
    """A list of ids → 1-d uint32."""
    return np.array(values, dtype=np.uint32)
