"""What a rank's thread does in a save: files alone, no GPU, no collective."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_codemix.checkpoint.completeness import lacks
from megatron_codemix.checkpoint.record import FileEntry, Form
from megatron_codemix.checkpoint.state import State
from megatron_codemix.config import padded_vocab_size
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import Incomplete, Piece, PieceReader, write_neutral, write_pieces

Files = dict[str, FileEntry]
"""File name in weights/ → size and digest."""
Beat = Callable[[], None]
"""A thread calls it whenever it has written or read a little more."""
Task = Callable[[Beat], Files]

_VISIBLE_SECONDS = 120.0
"""A shared file system may show a file of another machine this late."""


class Work(threading.Thread):
    """One phase of a save on this rank, in a thread. A daemon: a process that crashes does not wait for its disk."""

    def __init__(self, task: Task) -> None:
        super().__init__(name="codemix-save", daemon=True)
        self._task, self.result = task, Files()
        self.error: BaseException | None = None
        self._signs = self._seen = 0
        try:
            self.start()
        except RuntimeError as error:  # no more threads: a resource, as room on a disk is
            self.error = OSError(errno.EAGAIN, str(error))

    def run(self) -> None:
        try:
            self.result = self._task(self._beat)
        except BaseException as error:  # the main thread asks for it
            self.error = error

    def moved(self) -> bool:
        """Whether it has written or read something since the last time it was asked."""
        seen, self._seen = self._seen, self._signs
        return self._seen > seen

    def _beat(self) -> None:
        self._signs += 1


@dataclass
class Job:
    """The save in flight, as this rank sees it."""

    state: State
    form: Form
    folder: Path
    """Hidden, until it is published."""
    phases: Generator[Task, Files | None, None] = field(init=False)
    work: Work = field(init=False)
    begun: float = field(default_factory=time.perf_counter)
    published: float = 0.0
    """When, on the main rank."""
    stall_seconds: float = 0.0
    warning: str | None = None
    falls_back: bool = False
    """Whether what phase 1 wrote is there to be published, should this phase fail."""
    refusal: str | None = None
    """Why the save is given up; its folder goes."""


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
    # what a thread of a save does besides files is arithmetic on them, so an OSError is the disk's; memory comes back, too
    text = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "") if isinstance(error, OSError) else str(error)
    return Failure(text or repr(error), isinstance(error, (OSError, MemoryError)), isinstance(error, UserError))


def write_routine(folder: Path, pieces: Sequence[Piece], rank: int, world_size: int, step: int, beat: Beat) -> Files:
    """This rank's pieces, as it holds them. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if not pieces:
        return Files()
    name = f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
    written = write_pieces(folder / name, pieces, step, beat)
    return {name: FileEntry(size=written.size, sha256=written.sha256)}


def write_whole(routine: Path, parts: Files, folder: Path, rank: int, world_size: int, beat: Beat) -> Files:
    """This rank's share of the neutral form, from what all ranks wrote into `routine`. Raises OSError."""
    await_files(routine, parts)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        written = write_neutral(PieceReader(routine), folder, rank, world_size, beat=beat)
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


def require_whole(folder: Path, files: Files, state: State) -> None:
    """Look at the headers of what all ranks wrote: all of the model and nothing else, before it takes an older checkpoint's place.

    Raises RuntimeError where it is not (a layout whose ranks do not divide the state among them), OSError where a file
    cannot be read.
    """
    try:
        reader = PieceReader(folder)
    except Incomplete as error:
        raise RuntimeError(f"what the ranks wrote is not one training state: {error}") from None
    except UserError as error:
        raise OSError(errno.EIO, str(error)) from None
    rows = padded_vocab_size(state.vocab_size, state.config.model.vocab_multiple)
    problems = [f"file '{name}'" for name in sorted(set(os.listdir(folder)) ^ set(files))]
    problems += [] if reader.step == state.step else [f"step {reader.step}"]
    problems += lacks(reader, state.config.model, rows)
    if problems:
        raise RuntimeError(f"what the ranks wrote is not the whole model: {', '.join(problems[:3])} ({len(problems)} in all)")
