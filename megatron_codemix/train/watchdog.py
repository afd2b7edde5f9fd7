"""No progress for `timeouts.hang_seconds`: every rank writes the stacks of its threads, and the job ends.

Under `codemix train --nproc` each beat goes into a file that the launcher watches; on a hang it has every rank write its
stacks (SIGUSR2, handled in C: a held GIL is no obstacle) and ends all, a stopped process too. Without it (torchrun, a single
process) a timer of faulthandler's, again in C, writes the stacks and ends the process; a thread says so in words before it does.

    with Watchdog(run_folder / "stacks", rank, attempt, hang_seconds) as watchdog:
        watchdog.beat(step, "step")

`kill -USR2 PID` writes a rank's stacks at any time, without ending it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from megatron_codemix import worker
from megatron_codemix.errors import JobError, PassingError
from megatron_codemix.progress import say
from megatron_codemix.train.pulse import ENDED, PULSE_FILE, PulseFile
from megatron_codemix.train.stacks import remove_if_empty, stack_file, sweep

_REARM_SECONDS = 1.0
"""A beat costs nothing but once in this time: arming faulthandler's timer starts a thread."""


class Watchdog:
    """Context manager around everything that must not hang; `beat` says that it does not."""

    def __init__(self, folder: Path, rank: int, attempt: int, hang_seconds: float) -> None:
        """folder: RUN/stacks; attempt: which start of the run this is. hang_seconds: without a beat."""
        self._path, self._rank, self._attempt, self._hang_seconds = stack_file(folder, rank, attempt), rank, attempt, hang_seconds
        self._rearm_seconds = min(_REARM_SECONDS, hang_seconds / 10)
        self._pulses: PulseFile | None = None
        self._file: TextIO | None = None
        self._armed = self._last = 0.0
        self._step, self._what = 0, "start"
        self._ended = threading.Event()

    def __enter__(self) -> Watchdog:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a", encoding="utf-8")
        except OSError as error:
            raise PassingError(f"{self._path}: cannot be written to ({error.strerror}); make room, or choose another 'output'") from None
        if self._rank == 0:
            sweep(self._path.parent, self._attempt)
        faulthandler.register(signal.SIGUSR2, file=self._file, all_threads=True)
        shared = os.environ.get(PULSE_FILE)
        if shared:
            self._pulses = PulseFile(Path(shared), int(os.environ["WORLD_SIZE"]))
        else:
            threading.Thread(target=self._speak, name="watchdog", daemon=True).start()
        self.beat(0, "start")
        return self

    def beat(self, step: int, what: str) -> None:
        """Progress: a step, a batch of validation or a part of a checkpoint is done. Any thread may say so.

        step: updates done; what: a word for the message of a hang.
        """
        now = time.monotonic()
        self._last, self._step, self._what = now, step, what
        if self._pulses is not None:
            self._pulses.write(self._rank, step, self._attempt, what)
        elif self._file is not None and now - self._armed > self._rearm_seconds:
            self._armed = now
            # later by what beats in between may not have counted
            faulthandler.dump_traceback_later(self._hang_seconds + self._rearm_seconds, exit=True, file=self._file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        assert self._file is not None
        if error is not None and time.monotonic() - self._last > 0.9 * self._hang_seconds:
            # a peer's watchdog was quicker, and its end woke this rank: say where it had waited
            self._file.write("".join((worker.traceback_text(error), "\n")))
        faulthandler.unregister(signal.SIGUSR2)
        if self._pulses is not None:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # one that is on its way must not kill a process that is leaving
        self._file.close()
        self._file = None  # a beat that comes late from a thread arms nothing
        remove_if_empty(self._path)
        if self._pulses is not None:
            if error is None:
                self._pulses.write(self._rank, self._step, self._attempt, ENDED)
            self._pulses.close()
            self._pulses = None

    def _speak(self) -> None:
        """Say why this process is about to end, for torchrun's summary too; needs the GIL, unlike what ends it."""
        while not self._ended.wait(max(self._last + self._hang_seconds - time.monotonic(), 0.05)):
            silent = time.monotonic() - self._last
            if silent >= self._hang_seconds:
                problem = (
                    f"no progress for {silent:.0f} s (rank {self._rank}; last: {self._what} {self._step}); stacks in {self._path.parent}"
                )
                say(f"codemix train: {problem}")
                worker.record(JobError(problem))
                return
