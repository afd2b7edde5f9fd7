"""Memory maps of shard files, shared by all readers of a process and bounded in number.

A map holds a file descriptor, and a source of 10¹² tokens has thousands of shards: the least recently
used map is let go when half of the process's descriptors are taken. Arrays made from it keep it alive.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections import OrderedDict
from pathlib import Path

from megatron_codemix.errors import UserError
from megatron_codemix.shards.manifest import REMEDY

_lock = threading.Lock()
_maps: OrderedDict[str, mmap.mmap] = OrderedDict()


def _capacity() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if soft == resource.RLIM_INFINITY else max(8, soft // 2)


_MAX_MAPS = _capacity()


def map_file(path: Path, size: int) -> mmap.mmap:
    """A read-only map of `path`, which must have `size` bytes.

    Raises UserError when the file has gone or changed its size since the split was opened.
    """
    key = str(path)
    with _lock:
        found = _maps.get(key)
        if found is not None and len(found) == size:
            _maps.move_to_end(key)
            return found
        try:
            with open(path, "rb") as handle:
                made = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: shard cannot be read ({error}); {REMEDY}") from None
        if len(made) != size:
            raise UserError(f"{path}: has {len(made)} bytes, not the manifest's {size}; {REMEDY}")
        _maps[key] = made
        while len(_maps) > _MAX_MAPS:
            _maps.popitem(last=False)
        return made
