"""gigatoken, kept within bounds.

It remembers every word it has seen, without limit (some 7 bytes for each byte of words never seen before), and is fastest
with what it remembers. It is therefore made anew, from its parsed form, when the process has grown by more than a bound while
it worked; ids do not depend on that. Called a document at a time: its own batch call was measured at half the speed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gigatoken
import numpy as np

_MAX_GROWTH = 96 << 20
"""Bytes of memory it may take before it starts anew."""
_GROWTH_PER_BYTE = 1.0
"""Assumed where the system does not say how large a process is: bytes of memory for each byte of text."""
_STATM = Path("/proc/self/statm")


def _resident() -> int | None:
    """Bytes of memory this process holds; None where the system does not say."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


class FastEngine:
    """A gigatoken tokenizer whose memory is bounded."""

    def __init__(self, form: str) -> None:
        """form: contents of a tokenizer.json. Raises whatever gigatoken raises for a kind it does not have."""
        self._form = form
        self._growth = 0
        self.encode: Callable[[str], np.ndarray] = gigatoken.Tokenizer.from_json(form).backend.encode
        """Text → 1-d uint32 ids."""

    def batch(self, encode: Callable[[str], np.ndarray], texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, which may use this engine; then it starts anew if it has grown too large."""
        before = _resident()
        encoded = [encode(text) for text in texts]
        after = _resident()
        if before is None or after is None:
            self._growth += int(_GROWTH_PER_BYTE * sum(map(len, texts)))
        else:
            self._growth += max(0, after - before - sum(ids.nbytes for ids in encoded))
        if self._growth > _MAX_GROWTH:
            self._start_anew()
        return encoded

    def _start_anew(self) -> None:
        del self.encode  # the old one's memory first
        self.__init__(self._form)
