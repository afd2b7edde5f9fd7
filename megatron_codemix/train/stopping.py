"""Being asked to stop: finish the step, save, leave with an exit code that says there is more to do."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from megatron_codemix import worker
from megatron_codemix.progress import say

STOPPED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request with everything saved; the same command continues."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
ECHO_SECONDS = 2.0
"""A second Ctrl-C within this time is the same one, come another way."""


class StopRequest:
    """Context manager that turns SIGTERM, SIGUSR1 (SLURM's warning) and Ctrl-C into a flag.

    SIGTERM and SIGUSR1 may come many times: srun signals the workers and torchrun, which signals them again;
    only SIGKILL ends a process that is saving. A second Ctrl-C leaves at once, unless it is such an echo.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            name = signal.Signals(number).name
            if worker.speaks_for_all():
                say(f"{name}: finishing this step, then saving and leaving")
        elif number == signal.SIGINT and time.monotonic() - self._since > ECHO_SECONDS:
            raise KeyboardInterrupt
