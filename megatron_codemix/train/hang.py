"""The launcher's side of a hang: no rank that makes progress, stacks of all, and who holds up the others."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_codemix.config import TimeoutConfig
from megatron_codemix.train.pulse import ENDED, Pulse, PulseFile
from megatron_codemix.train.stacks import Place, main_thread, stack_file, suspect
from megatron_codemix.train.workers import Worker

_STACKS_SECONDS = 5.0
"""For all ranks to write their stacks; those that do not are stopped, or deep in the kernel."""
_PAUSE_SECONDS = 5.0
"""A launcher that itself slept for longer than this was stopped, and the workers surely with it: their silence means nothing."""


@dataclass(frozen=True)
class Hang:
    """A rank has been silent for too long."""

    seconds: float
    """The limit."""
    pulses: dict[int, Pulse | None]
    """Rank → last sign of life, of the ranks that run."""


class HangWatch:
    """Decides whether the running ranks have been silent for too long."""

    def __init__(self, pulses: PulseFile, timeouts: TimeoutConfig) -> None:
        self._pulses, self._timeouts = pulses, timeouts
        self._since = self._checked = time.monotonic()
        self._suspected = False

    def check(self, running: Sequence[int]) -> Hang | None:
        """Call often. A rank that has not begun has `join_seconds` more; one that has left training is not waited for here."""
        now = time.monotonic()
        if now - self._checked > _PAUSE_SECONDS:
            self._since = now
        self._checked = now
        pulses = {rank: self._pulses.read(rank) for rank in running}
        silent = any(self._is_silent(pulse, now) for pulse in pulses.values())
        suspected, self._suspected = self._suspected, silent  # twice in a row: one read may have met a write
        return Hang(self._timeouts.hang_seconds, pulses) if silent and suspected else None

    def _is_silent(self, pulse: Pulse | None, now: float) -> bool:
        if pulse is None:
            return now - self._since > self._timeouts.join_seconds + self._timeouts.hang_seconds
        return pulse.what != ENDED and now - max(pulse.time, self._since) > self._timeouts.hang_seconds


def kill_with_stacks(running: Sequence[Worker], hang: Hang, folder: Path | None, wait: Callable[[], object]) -> list[str]:
    """Have all running ranks write their stacks, kill them, and say what is known. wait: passes some time usefully."""
    now = time.monotonic()
    stopped = {one.rank for one in running if one.state in ("T", "t")}
    begun = {rank: pulse.attempt for rank, pulse in hang.pulses.items() if pulse is not None}
    files = {rank: stack_file(folder, rank, attempt) for rank, attempt in begun.items()} if folder is not None else {}
    before = {rank: _size(path) for rank, path in files.items()}

    def silent() -> set[int]:
        return {rank for rank, path in files.items() if _size(path) <= before[rank]}

    for one in running:
        if one.rank in files:  # before its first sign of life nothing there handles the signal
            one.signal(signal.SIGUSR2)
    end = now + _STACKS_SECONDS
    while time.monotonic() < end and silent() - stopped:
        wait()
    wait()  # a dump is written in many small pieces
    for one in running:
        one.kill()
    unheard = silent()
    places = {rank: main_thread(_text(files[rank])) if rank in files and rank not in unheard else None for rank in hang.pulses}
    return _words(hang, {one.rank: one.process.pid for one in running}, stopped, places, now, folder)


def _words(
    hang: Hang, pids: dict[int, int], stopped: set[int], places: dict[int, Place | None], now: float, folder: Path | None
) -> list[str]:
    ages = {rank: now - (pulse.time if pulse else 0.0) for rank, pulse in hang.pulses.items()}
    culprit = min(stopped) if len(stopped) == 1 else suspect(places, ages)
    lines = [f"no progress for {hang.seconds:g} s (timeouts.hang_seconds); all ranks were ended"]
    if culprit is not None:
        place = places[culprit]
        where = "is stopped (SIGSTOP)" if culprit in stopped else "did not answer" if place is None else f"stood at {place.innermost}"
        lines.append(f"rank {culprit} (process {pids[culprit]}) seems to hold up the others: it {where}")
    last = "; ".join(f"rank {rank}: {_last(pulse, ages[rank])}" for rank, pulse in sorted(hang.pulses.items()))
    lines.append(f"last signs of life: {last}")
    return lines + ([f"stacks of all ranks: {folder}"] if folder is not None and any(places.values()) else [])


def _last(pulse: Pulse | None, age: float) -> str:
    return "none, it had not begun" if pulse is None else f"{pulse.what} {pulse.step}, {age:.1f} s ago"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
