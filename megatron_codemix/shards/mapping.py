"""Memory maps of shard files, shared by all readers of a process and bounded in number.

A map holds a file descriptor, and a source of 10¹² tokens has thousands of shards: the least recently
used map is let go when half of the process's descriptors are taken. Arrays made from it keep it alive.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.shards.manifest import REMEDY


class ShardFile(NamedTuple):
    """A shard as it was when its split was opened: another file under its name is not taken for it."""

    path: str
    size: int
    inode: int
    changed: int
    """Modification time, ns."""

    @classmethod
    def of(cls, path: Path) -> ShardFile:
        """Raises OSError where there is no such file."""
        return cls._of(str(path), os.stat(path))

    @classmethod
    def _of(cls, path: str, status: os.stat_result) -> ShardFile:
        return cls(path, status.st_size, status.st_ino, status.st_mtime_ns)

    def require_unaltered(self) -> None:
        """Raises UserError where the file was written to since. One that was replaced or deleted is another file: whoever
        has this one mapped still reads what it was."""
        try:
            status = os.stat(self.path)
        except OSError:
            return
        if status.st_ino == self.inode and (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            raise UserError(f"{self.path}: was altered while it was read; {REMEDY}, and start again from a checkpoint before that")


def map_now(file: ShardFile, advice: int = mmap.MADV_SEQUENTIAL, hold: bool = False) -> mmap.mmap:
    """A read-only map that the caller owns. advice: how it will be read, one of mmap's MADV constants.

    hold: with a shared lock on the file for as long as the map lives, so that a cache does not evict it.

    Raises UserError when the file has gone or changed since the split was opened. (One that shrinks in place
    while it is mapped kills the process: that is how mmap works. Writers here replace files, never alter them.)
    """
    try:
        with open(file.path, "rb") as handle:
            if hold:
                fcntl.flock(handle, fcntl.LOCK_SH)
            found = ShardFile._of(file.path, os.fstat(handle.fileno()))
            if found == file:
                # mmap duplicates the descriptor, and a lock belongs to what both stand for: it lasts as long as the map
                made = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                made.madvise(advice)
                return made
    except (OSError, ValueError) as error:
        passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        raise (PassingError if passing else UserError)(f"{file.path}: shard cannot be read ({error}); {REMEDY}") from None
    raise UserError(f"{file.path}: changed while the split was open; {REMEDY}, and start again")


LOOK_SECONDS = 0.1
"""A shared map's file is looked at again (one stat) when the last look is older: at most once a read, and seldom where reads are quick."""


class _Shared:
    """A map, and when its file was last seen unaltered."""

    __slots__ = ("looked", "map")

    def __init__(self, made: mmap.mmap) -> None:
        self.map, self.looked = made, time.monotonic()


def _capacity() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(8, soft // 2)


_MAX_MAPS = _capacity()
_lock = threading.Lock()
_maps: OrderedDict[ShardFile, _Shared] = OrderedDict()


def map_shared(file: ShardFile, hold: bool = False) -> mmap.mmap:
    """A map for reading windows anywhere, or the one made earlier in this process.

    Without read-ahead: a window that is not in the page cache would else bring megabytes of neighbours along
    (measured: 13 ms instead of 0.16 ms a window). `will_need` asks for what is wanted. Raises UserError as `map_now` does, and
    where the file behind an earlier map was written to more than `LOOK_SECONDS` ago.
    """
    with _lock:
        found = _maps.get(file)
        if found is None:
            found = _maps[file] = _Shared(map_now(file, mmap.MADV_RANDOM, hold))
            while len(_maps) > _MAX_MAPS:
                _maps.popitem(last=False)
            return found.map
        _maps.move_to_end(file)
    now = time.monotonic()
    if now - found.looked >= LOOK_SECONDS:
        file.require_unaltered()
        found.looked = now
    return found.map


def let_go(file: ShardFile) -> None:
    """Forget a shared map, if there is one; arrays made from it stay valid."""
    with _lock:
        _maps.pop(file, None)


def will_need(shard: mmap.mmap, offsets: np.ndarray, num_bytes: int) -> None:
    """Have the kernel fetch `num_bytes` from each of `offsets` (int64), all at once and without waiting.

    Measured on a disk: 25 µs a window of 4 KiB instead of 160. What is cached already costs 0.7 µs for nothing.
    """
    pages = offsets & -mmap.PAGESIZE
    for page, length in zip(pages.tolist(), (offsets + num_bytes - pages).tolist()):
        shard.madvise(mmap.MADV_WILLNEED, page, length)


class DiskWatch:
    """Whether this process has lately waited for pages of a disk: then it pays to ask for them ahead."""

    _CALLS = 256

    def __init__(self) -> None:
        self._faults = 0
        self._left = 0

    def is_read_from(self) -> bool:
        """True for 256 calls after the number of major page faults has grown."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        if faults != self._faults:
            self._faults, self._left = faults, self._CALLS
        self._left = max(0, self._left - 1)
        return self._left > 0
