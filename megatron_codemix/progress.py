"""Progress for anything over five seconds: a rich bar on a terminal, plain lines elsewhere.

Ground floor: imports nothing of the project but `worker`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_codemix.worker import speaks_for_all

_PLAIN_SECONDS = 5.0


def say(text: str, out: TextIO | None = None) -> None:
    """Print a line, on stderr if not told otherwise. A terminal that has gone, or a full disk under the file that output goes to,
    is no reason to end what speaks."""
    with suppress(OSError, ValueError):
        print(text, file=out or sys.stderr, flush=True)


class _Plain:
    """Prints one line every few seconds, so logs of batch jobs stay short."""

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.started = self.printed = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= _PLAIN_SECONDS:
            self.printed = now
            self._line(now, note)

    def _line(self, now: float, note: str) -> None:
        elapsed = now - self.started
        whole = f"/{self.total:,.0f}" if self.total else ""
        left = ""
        if self.total and self.done:
            left = f", {elapsed * (self.total - self.done) / self.done:.0f} s left"
        extra = f", {note}" if note else ""
        say(f"{self.what}: {self.done:,.0f}{whole} {self.unit}, {elapsed:.0f} s{left}{extra}")


class _Silent:
    """Of several processes, one shows what all do."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


class _Bar:
    def __init__(self, progress: Progress, task) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=amount, note=note)


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "") -> Iterator[_Plain | _Bar | _Silent]:
    """Show how far `what` has come; call `.advance(amount, note="")` on what is yielded.

    total: how many units there are, or None if unknown. Output goes to stderr, results to stdout. Of the ranks of one run
    only the first shows it.
    """
    if not speaks_for_all():
        yield _Silent()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Plain(what, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}" if total else "{task.completed:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(what, total=total, unit=unit, note=""))
