"""Where the files of a split lie: in a folder, or in a store behind the node's cache. What a reader needs of either."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Protocol

from megatron_codemix.errors import UserError
from megatron_codemix.shards.cache import CacheFull, ShardCache
from megatron_codemix.shards.layout import index_name
from megatron_codemix.shards.manifest import REMEDY, Manifest, ShardEntry
from megatron_codemix.shards.mapping import ShardFile, let_go, map_shared
from megatron_codemix.shards.stores import Store

_CHUNK_BYTES = 4 << 20


class Place(Protocol):
    """The shards of a split, by number."""

    in_store: bool
    """Whether they are fetched, and kept in a cache that holds not all of them."""

    def file(self, shard: int) -> ShardFile:
        """The shard's file, once it is there. Raises UserError or JobError."""
        ...

    def map(self, shard: int) -> mmap.mmap:
        """Its shared map. Raises as `file` does."""
        ...

    def sidecar(self, shard: int) -> bytes:
        """The content of its sidecar. Raises UserError where it is missing."""
        ...

    def bring(self, shard: int) -> bool:
        """Have it near, ahead of its use; False where that has to be tried again later. Raises as `file` does."""
        ...

    def want(self, shard: int, step: int | None) -> None:
        """It is needed at this step; None: no longer."""
        ...


class FolderPlace:
    """Shards in a folder, read where they are."""

    in_store = False

    def __init__(self, folder: Path, manifest: Manifest, check: bool = True) -> None:
        """check: look at the size of every shard now; raises UserError naming each that does not fit the manifest.

        Without, that is done when a shard is first needed: thousands of ranks need not ask a file system for thousands of files.
        """
        self._folder, self._entries = folder, manifest.shards
        self._files: list[ShardFile | None] = [None] * len(manifest.shards)
        problems: list[str] = []
        for shard in range(len(self._entries)) if check else ():
            try:
                self.file(shard)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)

    def file(self, shard: int) -> ShardFile:
        found = self._files[shard]
        if found is None:
            found = self._files[shard] = shard_file(self._folder, self._entries[shard])
        return found

    def map(self, shard: int) -> mmap.mmap:
        return map_shared(self._files[shard] or self.file(shard))

    def sidecar(self, shard: int) -> bytes:
        return sidecar_content(self._folder, self._entries[shard])

    def bring(self, shard: int) -> bool:
        """Read it from its beginning to its end, so that its pages are cached: what disks and file servers do best."""
        buffer = bytearray(_CHUNK_BYTES)
        try:
            with open(self.file(shard).path, "rb", buffering=0) as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                while handle.readinto(buffer):
                    pass
        except OSError:
            pass  # whoever reads windows of it will say what is wrong
        return True

    def want(self, shard: int, step: int | None) -> None:
        pass


class StorePlace:
    """Shards of a store, fetched into the node's cache."""

    in_store = True

    def __init__(self, store: Store, manifest: Manifest, sidecars: list[bytes], cache: ShardCache) -> None:
        self._store, self._entries, self._sidecars, self._cache = store, manifest.shards, sidecars, cache
        self._files: dict[int, ShardFile] = {}

    def file(self, shard: int) -> ShardFile:
        return self._cache.take(self._entries[shard], self._store, self._give_way)

    def map(self, shard: int) -> mmap.mmap:
        while True:
            file = self._files.get(shard)
            if file is not None:
                try:
                    return map_shared(file, hold=True)
                except UserError:  # evicted while this process had no map of it
                    pass
            self._files[shard] = self.file(shard)

    def _give_way(self) -> None:
        """Let go of all maps: what is read again is mapped again, if it is still there."""
        for shard in tuple(self._files):
            if file := self._files.pop(shard, None):
                let_go(file)

    def sidecar(self, shard: int) -> bytes:
        return self._sidecars[shard]

    def bring(self, shard: int) -> bool:
        try:
            return self._cache.bring(self._entries[shard], self._store)
        except CacheFull:
            return False

    def want(self, shard: int, step: int | None) -> None:
        self._cache.want(self._entries[shard], step)
        if step is None and (file := self._files.pop(shard, None)):
            let_go(file)


def shard_file(folder: Path, entry: ShardEntry) -> ShardFile:
    """The shard's file; raises UserError where it is missing or has another size than the manifest says."""
    tar = folder / entry.name
    try:
        file = ShardFile.of(tar)
    except OSError:
        raise UserError(f"{tar}: shard listed in the manifest, but missing; {REMEDY}") from None
    if file.size != entry.size:
        fault = "truncated" if file.size < entry.size else "longer than written"
        raise UserError(f"{tar}: {fault} ({file.size} bytes, the manifest says {entry.size}); {REMEDY}")
    return file


def sidecar_content(folder: Path, entry: ShardEntry) -> bytes:
    """What the shard's sidecar holds; raises UserError where it is missing."""
    sidecar = folder / index_name(entry.name)
    try:
        return sidecar.read_bytes()
    except OSError:
        raise UserError(f"{sidecar}: sidecar of {entry.name} is missing; {REMEDY}") from None
