"""One writer per run folder: a locked file that names the process holding it.

The kernel's record lock decides between processes of one host, and between hosts where the file system
carries such locks (NFS, Lustre with `flock`); it vanishes with its process, so a killed run never has to be
cleaned up after. Where the file system does not carry it, a living process on another host is recognised by
the file's age: the recorder touches it at every step.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from megatron_codemix.errors import UserError

LOCK_NAME = "train.lock"
_SILENT_SECONDS = 600.0
"""A holder on another host that has not touched the file for this long is taken for dead."""

_held: set[Path] = set()  # record locks do not exclude the process that holds them


def _me() -> dict[str, int | str]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


class RunLock:
    """Context manager around everything that writes below a run folder.

    Raises UserError on entry when a live process holds the folder, or it cannot be written to.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = Path(run_folder).absolute() / LOCK_NAME

    def __enter__(self) -> RunLock:
        if self.path in _held:
            raise UserError(f"{self.path.parent}: this process is training into it already; wait for it, or choose another 'output'")
        # Never opened a second time in this process: closing any descriptor of a file drops its record locks.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be written to ({error.strerror}); choose another 'output'") from None
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._refuse()
            # else the file system has no locks: the age of the file has to do
        try:
            silent = time.time() - os.fstat(self._handle.fileno()).st_mtime
            if self._holder().get("host", socket.gethostname()) != socket.gethostname() and silent < _SILENT_SECONDS:
                self._refuse()
            self._handle.truncate(0)
            json.dump(_me(), self._handle)
            self._handle.flush()
        except BaseException:
            self._handle.close()
            raise
        _held.add(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _held.discard(self.path)
        if self._is_mine():
            self._handle.truncate(0)  # an empty file: released. Unlinking would let two processes lock two files.
        self._handle.close()

    def touch(self) -> None:
        """Say that the holder lives."""
        os.utime(self._handle.fileno())

    def require_held(self) -> None:
        """Call before anything is published or swept away.

        Raises UserError when another process has taken the folder over: this one was cut off and taken for dead,
        or its lock file was deleted.
        """
        if not self._is_mine():
            raise UserError(f"{self.path.parent}: another process has taken this folder over; nothing more is written from here")

    def _is_mine(self) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return True  # deleted, and taken by nobody since: that would have made it anew
        return os.path.samestat(there, os.fstat(self._handle.fileno())) and self._holder() == _me()

    def _holder(self) -> dict:
        self._handle.seek(0)
        try:
            return dict(json.loads(self._handle.read() or "{}"))
        except (ValueError, TypeError):
            return {}

    def _refuse(self) -> None:
        holder = self._holder()
        self._handle.close()
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        raise UserError(
            f"{self.path.parent}: {who} is training into this folder; wait for it to end, or choose another 'output' "
            f"(if that process is gone, delete {self.path})"
        )
