"""RUN/stacks/rank-00002.attempt-3.txt: what `faulthandler` wrote of a rank that made no progress, and who held up whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STACKS = "stacks"
_FRAME = re.compile(r'^\s+File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+")
# Where a rank stands that waits for others: torch's collectives and point-to-point operations.
_WAITING = re.compile(r"torch[/\\]distributed[/\\]|megatron[/\\]core[/\\]pipeline_parallel[/\\]p2p_communication")
_INNERMOST = 4
"""Frames from the top among which a collective is looked for."""


def stack_file(folder: Path, rank: int, attempt: int) -> Path:
    """Where rank `rank` of a run's start number `attempt` writes its stacks."""
    return folder / f"rank-{rank:05d}.attempt-{attempt}.txt"


def sweep(folder: Path, attempt: int) -> None:
    """Remove the empty files that killed processes of other attempts left; those of this one may be in use already."""
    for path in folder.glob("rank-*.txt"):
        with suppress(OSError):
            if not path.name.endswith(f".attempt-{attempt}.txt") and not path.stat().st_size:
                path.unlink()


def remove_if_empty(path: Path) -> None:
    """A rank has ended: its file goes if nothing was written, and then the folder if nothing else is in it."""
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()
        path.parent.rmdir()


@dataclass(frozen=True)
class Place:
    """Where the main thread of a rank stood."""

    innermost: str
    """'File "spin.py", line 12 in spin'."""
    waiting: bool
    """Whether for other ranks."""


def main_thread(dump: str) -> Place | None:
    """Where the main thread stood in the last dump of a stacks file; None where there is none, or it was cut off."""
    threads: list[list[tuple[str, str]]] = []
    for line in dump.splitlines():
        if _THREAD.match(line):
            threads.append([])
        elif threads and (frame := _FRAME.match(line)):
            threads[-1].append((frame["file"], line.strip()))
    if not threads or not threads[-1]:
        return None
    frames = threads[-1]  # faulthandler lists the newest thread first
    return Place(frames[0][1], any(_WAITING.search(file) for file, _ in frames[:_INNERMOST]))


def suspect(places: Mapping[int, Place | None], ages: Mapping[int, float]) -> int | None:
    """The rank that seems to hold up the others, if it can be told.

    The only one that waits for nobody; else the one whose last sign of life is clearly older (1 s) than all others'.
    places: rank → where it stood (None: it could not say); ages: rank → seconds since its last sign of life.
    """
    busy = [rank for rank, place in places.items() if place is None or not place.waiting]
    if len(busy) == 1 and len(places) > 1:
        return busy[0]
    oldest = sorted(ages, key=lambda rank: ages[rank], reverse=True)
    if len(oldest) > 1 and ages[oldest[0]] - ages[oldest[1]] > 1.0:
        return oldest[0]
    return None
