"""Memory maps of shard files, shared by all readers of a process and bounded in number.

A map holds a file descriptor, and a source of 10¹² tokens has thousands of shards: the least recently
used map is let go when half of the process's descriptors are taken. Arrays made from it keep it alive.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from megatron_codemix.errors import UserError
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


def map_now(file: ShardFile) -> mmap.mmap:
    """A read-only map that the caller owns.

    Raises UserError when the file has gone or changed since the split was opened. (One that shrinks in place
    while it is mapped kills the process: that is how mmap works. Writers here replace files, never alter them.)
    """
    try:
        with open(file.path, "rb") as handle:
            found = ShardFile._of(file.path, os.fstat(handle.fileno()))
            if found == file:
                return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"{file.path}: shard cannot be read ({error}); {REMEDY}") from None
    raise UserError(f"{file.path}: changed while the split was open; {REMEDY}, and start again")


def _capacity() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(8, soft // 2)


_MAX_MAPS = _capacity()
_lock = threading.Lock()
_maps: OrderedDict[ShardFile, mmap.mmap] = OrderedDict()


def map_shared(file: ShardFile) -> mmap.mmap:
    """`map_now`, or the map made earlier in this process."""
    with _lock:
        found = _maps.get(file)
        if found is None:
            found = _maps[file] = map_now(file)
            while len(_maps) > _MAX_MAPS:
                _maps.popitem(last=False)
        else:
            _maps.move_to_end(file)
        return found
