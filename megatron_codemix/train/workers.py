"""The processes of a launch: started so that they die with it, ended with all that they started, and their output."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

from megatron_codemix import worker
from megatron_codemix.train.verdict import ErrorRecord, Outcome


class Worker:
    """One process of the job."""

    def __init__(self, rank: int, command: Sequence[str], environment: Mapping[str, str], folder: Path, store: socket.socket) -> None:
        self.rank = rank
        self.error_file = folder / f"error-{rank}.json"
        self.killed_at: float | None = None
        """time.monotonic() of the launcher's SIGKILL."""
        self.exit_code: int | None = None
        self.ended = 0.0
        launcher = os.getpid()

        def die_with_launcher() -> None:
            # In the child, before it becomes the command: no moment is left in which it could become an orphan.
            worker.die_with(launcher)

        piped = None if rank == 0 else subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=piped,
            stderr=piped,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), worker.ERROR_FILE: str(self.error_file)},
            pass_fds=(store.fileno(),) if rank == 0 else (),
            start_new_session=True,  # Ctrl-C in a terminal comes here alone, and is passed on once
            preexec_fn=die_with_launcher,
        )

    def poll(self) -> bool:
        """Whether it has ended. What it may have started and left behind is ended with it."""
        if self.exit_code is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
            self.signal_all(signal.SIGKILL)  # before it is reaped: until then nobody else can have its number
            self.exit_code, self.ended = self.process.wait(), time.time()
        return True

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.exit_code is None:  # then it was not reaped either; Popen.send_signal could do that behind our back
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it, and whatever it started."""
        if not self.poll():
            self.killed_at = self.killed_at or time.monotonic()
            self.signal_all(signal.SIGKILL)

    @property
    def killed(self) -> bool:
        """Whether the launcher had to end it."""
        return self.killed_at is not None

    @property
    def has_failed(self) -> bool:
        """Whether it has said what went wrong: its own end, and that of its peers, may be long in coming."""
        return self.error_file.exists()

    @property
    def state(self) -> str:
        """Linux's letter for what it does: R, S, D (waits for a disk), T (stopped), Z …; empty where that is not known."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return ""

    def signal_all(self, number: int) -> None:
        """Send a signal to it and all that it started, unless it has ended."""
        if self.exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def outcome(self) -> Outcome:
        """How it ended."""
        assert self.exit_code is not None, f"rank {self.rank} runs"
        return Outcome(self.rank, self.process.pid, self.exit_code, self.ended, self.killed, ErrorRecord.read(self.error_file))


class Relay:
    """Writes what workers write, line by line, with their rank before it."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._selector = selectors.DefaultSelector()
        self._rest: dict[IO[bytes], bytes] = {}
        for one in workers:
            for pipe, out in ((one.process.stdout, sys.stdout), (one.process.stderr, sys.stderr)):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    self._selector.register(pipe, selectors.EVENT_READ, (f"[rank {one.rank}] ", out))
                    self._rest[pipe] = b""

    def pass_on(self, seconds: float) -> bool:
        """Wait up to so long for output and write it; whether any came."""
        if not self._rest:
            time.sleep(seconds)
            return False
        ready = self._selector.select(seconds)
        for key, _ in ready:
            self._read(key.fileobj, *key.data)  # type: ignore[arg-type]
        return bool(ready)

    def _read(self, pipe: IO[bytes], prefix: str, out: TextIO) -> None:
        chunk = pipe.read(1 << 16)
        *lines, rest = (self._rest[pipe] + (chunk or b"")).split(b"\n")
        self._rest[pipe] = rest
        if chunk == b"":
            lines += [rest] if rest else []
            self._close(pipe)
        if lines:
            text = "".join(f"{prefix}{line.decode(errors='replace')}\n" for line in lines)
            try:
                out.write(text)
                out.flush()
            except (OSError, ValueError):  # whoever read it has gone, or a full disk: the workers need not be disturbed by that
                pass

    def _close(self, pipe: IO[bytes]) -> None:
        self._selector.unregister(pipe)
        self._rest.pop(pipe)
        pipe.close()

    def close(self) -> None:
        """Write what has come by now, and close the pipes."""
        while self._rest and self.pass_on(0.0):
            pass
        for pipe in tuple(self._rest):
            self._close(pipe)
        self._selector.close()
