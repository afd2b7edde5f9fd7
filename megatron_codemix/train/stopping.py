"""Being asked to stop: finish the step, save, leave with an exit code that says there is more to do."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from megatron_codemix import worker
from megatron_codemix.progress import say

STOP_FILE = "CODEMIX_STOP_FILE"
"""Environment variable: a file that asks to stop as soon as it is there, for whoever cannot send signals to every node."""

STOPPED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request with everything saved; the same command continues."""

ECHO_SECONDS = 2.0
"""A second Ctrl-C within this time is the same one, come another way."""


def stop_signals() -> list[signal.Signals]:
    """Those that ask to stop. SIGHUP (the terminal has gone) and SIGINT do not where whoever started this process has them
    ignored: nohup, and a shell's background jobs."""
    refusable = [number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    return [signal.SIGTERM, signal.SIGUSR1, *refusable]


class StopRequest:
    """Context manager that turns SIGTERM, SIGUSR1 (SLURM's warning), SIGHUP and Ctrl-C into a flag; so does the stop file.

    SIGTERM and SIGUSR1 may come many times: srun signals the workers and torchrun, which signals them again;
    only SIGKILL ends a process that is saving. A second Ctrl-C leaves at once, unless it is such an echo.
    A worker that has left in good order hears none of them any more: an echo must not make a failure of its exit.
    """

    def __init__(self) -> None:
        self.requested = False
        self._file = os.environ.get(STOP_FILE)
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if worker.is_worker() and error is None else before)

    def look(self) -> bool:
        """`requested`, after a look for the stop file; in the main process alone, so that thousands do not ask one server."""
        if not self.requested and self._file and worker.speaks_for_all() and os.path.exists(self._file):
            self.requested = True
            say(f"{self._file}: finishing this step, then saving and leaving")
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            name = signal.Signals(number).name
            if worker.speaks_for_all():
                with suppress(OSError):  # not print: the signal may have interrupted one, and that cannot be entered twice
                    os.write(2, f"{name}: finishing this step, then saving and leaving\n".encode())
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            raise KeyboardInterrupt
