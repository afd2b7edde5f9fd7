"""One writer per run folder: a locked file that names the process holding it, and shows that it lives.

The kernel's record lock decides between processes of one host, and between hosts where the file system carries such
locks (NFS, Lustre with `flock`); it vanishes with its process, so a killed run never has to be cleaned up after. Where
the file system does not carry it, the holder's heartbeat has to do: it touches the file every few seconds, and whoever
comes after it watches for that before it takes over, unless a lock of this very machine's kernel has decided. A holder
watched in vain (a node behind a cut network) finds out that it was replaced by its attempt (checkpoint/attempt.py), and
can publish nothing.
docs/decisions/067-who-may-write.md says why this is enough.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_codemix.checkpoint import Attempt, Superseded, last_attempt, prepare_store
from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.progress import say

LOCK_NAME = "train.lock"
BEAT_SECONDS = 5.0
"""The holder touches the file this often."""
WATCH_SECONDS = 30.0
"""A holder on another host that does not touch the file for this long is taken for dead."""
_CERTAIN_SECONDS = 600.0
"""So old a touch needs no watching, however far two hosts' clocks are apart."""

_held: set[Path] = set()  # record locks do not exclude the process that holds them


@cache
def _boot() -> str:
    """One kernel since it started: two hosts may have one name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _me() -> dict[str, Any]:
    me: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot()}
    if job := os.environ.get("SLURM_JOB_ID"):
        me |= {"job": job, "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    return me


class RunLock:
    """Context manager around everything that writes below a run folder.

    Raises UserError on entry when a live process holds the folder, or it cannot be written to.
    """

    attempt: Attempt
    """Which start of the run this is; taken on entry."""

    def __init__(self, run_folder: Path) -> None:
        self.path = Path(run_folder).absolute() / LOCK_NAME
        self._descriptor = -1
        self._locked = False  # by the kernel
        self._ours = True
        self._beat: threading.Thread | None = None
        self._released = threading.Event()

    def __enter__(self) -> RunLock:
        if self.path in _held:
            raise UserError(f"{self.path.parent}: this process is training into it already; wait for it, or choose another 'output'")
        self._open()
        try:
            self._lock()
            self._watch_the_holder()
            self._sign()
            self.attempt = Attempt.begin(self.path.parent, least=last_attempt(self.path.parent) + 1)
            prepare_store(self.path.parent)
        except BaseException:
            self._stop_beating()
            self._close()
            raise
        _held.add(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_beating()
        _held.discard(self.path)
        with suppress(OSError):  # a server that is away: the kernel's lock goes all the same
            if self._is_mine():
                os.ftruncate(self._descriptor, 0)  # an empty file: released. Unlinking would let two processes lock two files.
        self._close()

    def is_held(self) -> bool:
        """Whether the folder is still this process's; False once another one came, having taken this one for dead.

        Asked at each step and line of the log. Where the disk does not answer right now, the last answer stands.
        """
        with suppress(OSError, UserError):
            self._ours = self._is_mine() and self.attempt.is_current()
        return self._ours

    def require_held(self) -> None:
        """Call before anything is published or deleted. Raises Superseded; OSError or UserError where the disk does not answer."""
        if not (self._is_mine() and self.attempt.is_current()):
            raise Superseded.of(self.path.parent)

    def _sign(self) -> None:
        """Write who holds it, and show from now on that it lives: sweeping the store may take minutes."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(_me()).encode(), 0)
        except OSError as error:
            raise PassingError(f"{self.path}: cannot be written to ({error.strerror}); make room, or choose another 'output'") from None
        self._released.clear()
        self._ours = True
        self._beat = threading.Thread(target=self._keep_beating, name="codemix-lock", daemon=True)
        self._beat.start()

    def _stop_beating(self) -> None:
        self._released.set()
        if self._beat:
            self._beat.join()
            self._beat = None

    def _open(self) -> None:
        # Never opened a second time in this process: closing any descriptor of a file drops its record locks.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise PassingError(f"{self.path.parent}: cannot be written to ({error.strerror}); choose another 'output'") from None

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _lock(self) -> None:
        if self._try_lock():
            return
        if not self._is_my_forerunner(self._holder()):
            self._refuse()
        # A lost node's lock may outlive it on the server. A new file has no lock, and the old one's holder notices.
        self._close()
        self.path.unlink(missing_ok=True)
        self._open()
        if not self._try_lock():
            self._refuse()

    def _try_lock(self) -> bool:
        """False where another process has it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # any other error: the file system has no locks, and the heartbeat has to do
            self._locked = False
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        self._locked = True
        return True

    def _watch_the_holder(self) -> None:
        """Return when whoever the file names is gone. One of this very kernel need not be watched if its lock has decided."""
        holder, me = self._holder(), _me()
        here = holder.get("boot") == me["boot"] and holder.get("host") == me["host"]
        if not holder or (self._locked and here) or self._is_my_forerunner(holder):
            return
        touched = os.fstat(self._descriptor).st_mtime
        if time.time() - touched > _CERTAIN_SECONDS:
            return
        say(
            f"{self.path.parent}: was held by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
            f"watching for {WATCH_SECONDS:g} s whether it lives"
        )
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, WATCH_SECONDS / 10))
            if os.fstat(self._descriptor).st_mtime != touched or self._holder() != holder:
                self._refuse()

    def _is_my_forerunner(self, holder: dict[str, Any]) -> bool:
        """Whether the holder was an earlier start of this very Slurm job: Slurm has ended it, or cut it off."""
        me = _me()
        return "job" in me and holder.get("job") == me["job"] and int(holder.get("restart", 0)) < me["restart"]

    def _keep_beating(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                if self._is_mine():
                    os.utime(self._descriptor)
            except OSError:
                pass  # a server that is away for a while: the next beat tries again

    def _is_mine(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return True  # deleted, and taken by nobody since: that would have made it anew
        return os.path.samestat(there, os.fstat(self._descriptor)) and self._holder() == _me()

    def _holder(self) -> dict[str, Any]:
        # positioned reads: the thread of a save and the heartbeat ask as well
        try:
            return dict(json.loads(os.pread(self._descriptor, 4096, 0) or b"{}"))
        except (ValueError, TypeError):
            return {}

    def _refuse(self) -> None:
        holder = self._holder()
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        raise PassingError(
            f"{self.path.parent}: {who} is training into this folder; wait for it to end, or choose another 'output' "
            f"(if that process is gone, delete {self.path})"
        )
