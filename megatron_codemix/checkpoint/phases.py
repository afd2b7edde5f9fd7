"""What a rank's thread does in a save: files alone, no GPU, no collective."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_codemix.checkpoint.record import FileEntry
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import Piece, PieceReader, write_neutral, write_pieces

Files = dict[str, FileEntry]
"""File name in weights/ → size and digest."""

_VISIBLE_SECONDS = 120.0
"""A shared file system may show a file of another machine this late."""


class Work(threading.Thread):
    """One phase of a save on this rank, in a thread. A daemon: a process that crashes does not wait for its disk."""

    def __init__(self, task: Callable[[], Files]) -> None:
        super().__init__(name="codemix-save", daemon=True)
        self._task, self.result = task, Files()
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._task()
        except BaseException as error:  # the main thread asks for it
            self.error = error


@dataclass(frozen=True)
class Failure:
    """An exception, as it is told to other ranks."""

    text: str
    of_the_disk: bool
    of_the_user: bool


def told(error: BaseException | None) -> Failure | None:
    """What other ranks are told of a thread's exception."""
    if error is None:
        return None
    # what a thread of a save does besides files is arithmetic on them, so an OSError is the disk's
    text = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "") if isinstance(error, OSError) else str(error)
    return Failure(text or repr(error), isinstance(error, OSError), isinstance(error, UserError))


def write_routine(folder: Path, pieces: Sequence[Piece], rank: int, world_size: int, step: int) -> Files:
    """This rank's pieces, as it holds them. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not pieces:
        return Files()
    name = f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
    written = write_pieces(folder / name, pieces, step)
    return {name: FileEntry(size=written.size, sha256=written.sha256)}


def write_whole(routine: Path, parts: Files, folder: Path, rank: int, world_size: int) -> Files:
    """This rank's share of the neutral form, from what all ranks wrote into `routine`. Raises OSError."""
    await_files(routine, parts)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        written = write_neutral(PieceReader(routine), folder, rank, world_size)
    except UserError as error:  # what was just written and read back is another thing now
        raise OSError(errno.EIO, str(error)) from error
    return {name: FileEntry(size=digest.size, sha256=digest.sha256) for name, digest in written.items()}


def await_files(folder: Path, files: Files) -> None:
    """Wait until what other ranks wrote can be seen here. Raises OSError when it does not come."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    missing = set(files) - set(os.listdir(folder))
    while missing and time.monotonic() < deadline:
        time.sleep(0.2)
        missing = set(files) - set(os.listdir(folder))
    wrong = [name for name in sorted(files) if name in missing or os.path.getsize(folder / name) != files[name].size]
    if wrong:
        raise OSError(errno.ENOENT, "not there as another rank wrote it; is the run folder shared by all machines?", str(folder / wrong[0]))
