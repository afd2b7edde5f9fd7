"""Signs of life of the ranks of one machine: a small shared file with a slot a rank, written without a system call.

A rank writes when it last made progress and in what; the launcher (launch.py) reads all. CLOCK_MONOTONIC is the same for
all processes of a machine, so ages can be compared.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

PULSE_FILE = "CODEMIX_PULSE"
"""Environment variable: the file, set by the launcher."""
ENDED = "ended"
"""What a rank says last: it has left training in good order."""
_SLOT = struct.Struct("<dqq40s")


@dataclass(frozen=True)
class Pulse:
    """A rank's last sign of life."""

    time: float
    """time.monotonic() of it."""
    step: int
    """Updates done."""
    attempt: int
    """Which start of the run this is; names the file of the rank's stacks."""
    what: str
    """What the rank has just done."""


class PulseFile:
    """The slots of `num_ranks` ranks."""

    def __init__(self, path: Path, num_ranks: int, *, create: bool = False) -> None:
        if create:
            path.write_bytes(bytes(_SLOT.size * num_ranks))
        with open(path, "r+b") as handle:
            self._map = mmap.mmap(handle.fileno(), _SLOT.size * num_ranks)

    def write(self, rank: int, step: int, attempt: int, what: str) -> None:
        """Rank `rank` has just made progress."""
        _SLOT.pack_into(self._map, rank * _SLOT.size, time.monotonic(), step, attempt, what.encode()[:40])

    def read(self, rank: int) -> Pulse | None:
        """The last sign of life of a rank; None before its first. May be torn while that rank writes: read twice before acting on it."""
        when, step, attempt, what = _SLOT.unpack_from(self._map, rank * _SLOT.size)
        return Pulse(when, step, attempt, what.rstrip(b"\0").decode(errors="replace")) if when else None

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
