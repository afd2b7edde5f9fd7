"""Splits that lie in a store: their manifest and sidecars first, which one process reads for all; shards when they are needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from megatron_codemix.config import CacheConfig, Url
from megatron_codemix.errors import UserError
from megatron_codemix.files import write_bytes
from megatron_codemix.progress import progress
from megatron_codemix.shards.cache import ShardCache
from megatron_codemix.shards.layout import INDEX_DTYPE, index_name, npy_header
from megatron_codemix.shards.manifest import MANIFEST_NAME, REMEDY, Manifest
from megatron_codemix.shards.places import StorePlace
from megatron_codemix.shards.reader import SplitReader
from megatron_codemix.shards.stores import Patience, Store

_IMPATIENT = Patience(attempts=3, timeout_seconds=30.0)
"""For who only wants to look."""


class SplitFiles(NamedTuple):
    """The small files of a split, as one process sends them to others."""

    manifest: dict[str, Any]
    sidecars: tuple[bytes, ...]
    """One per shard; none where shards lie in a folder, which is read by each process when it needs one."""


def load_manifest(folder: Path | Url) -> Manifest:
    """The manifest of a split, wherever it lies. Raises UserError as `Manifest.load`, JobError where a store cannot be read from."""
    return _read_manifest(Store(folder, _IMPATIENT)) if isinstance(folder, Url) else Manifest.load(folder)


def open_split(folder: Path | Url, cache: ShardCache | None = None, files: SplitFiles | None = None) -> SplitReader:
    """A reader of a split. cache: of the node, for splits in a store; files: what another process has read of it.

    Raises UserError for a missing or damaged split, JobError where a store cannot be read from.
    """
    manifest = None if files is None else Manifest.model_validate(files.manifest)
    if not isinstance(folder, Url):
        return SplitReader(folder, manifest)
    assert cache is not None, f"{folder} is read through a cache"
    store = Store(folder, cache.patience)
    manifest = manifest or _read_manifest(store)
    sidecars = list(files.sidecars) if files is not None else _read_sidecars(store, manifest, cache.settings)
    return SplitReader(folder, manifest, StorePlace(store, manifest, sidecars, cache))


def files_of(reader: SplitReader) -> SplitFiles:
    """What other processes need to open the same split without reading its small files."""
    numbers = range(len(reader.manifest.shards)) if reader.place.in_store else ()
    return SplitFiles(reader.manifest.model_dump(mode="json"), tuple(map(reader.place.sidecar, numbers)))


def most_of_shards(manifest: Manifest, number: int) -> int:
    """Bytes of the `number` largest shards of a split."""
    return sum(sorted((entry.size for entry in manifest.shards), reverse=True)[:number])


def _read_manifest(store: Store) -> Manifest:
    where = f"{store.url}/{MANIFEST_NAME}"
    try:
        raw = json.loads(store.read(MANIFEST_NAME))
    except ValueError as error:
        raise UserError(f"{where}: this manifest cannot be read ({error}); make it anew or restore it") from None
    return Manifest.of(raw, where)


def _read_sidecars(store: Store, manifest: Manifest, settings: CacheConfig) -> list[bytes]:
    """All of them: from the cache where an earlier start has left them, else from the store."""
    kept = settings.folder / "splits" / manifest.fingerprint
    found = _kept_sidecars(kept, manifest)
    if found is None:
        names = [index_name(entry.name) for entry in manifest.shards]
        with progress(f"sidecars of {store.url}", len(names), "files") as bar:
            found = store.read_all(names, bar.advance)
        for entry, content in zip(manifest.shards, found, strict=True):
            if hashlib.sha256(content).hexdigest() != entry.index_sha256:
                where = store.url / index_name(entry.name)
                raise UserError(f"{where}: altered, or the sidecar of another shard (its sha256 is not the manifest's); {REMEDY}")
        write_bytes(kept, b"".join(found))
    return found


def _kept_sidecars(kept: Path, manifest: Manifest) -> list[bytes] | None:
    """What was kept, if it is whole. How long each sidecar is follows from its number of packs."""
    try:
        content = kept.read_bytes()
    except OSError:
        return None
    found, place = [], 0
    for entry in manifest.shards:
        size = len(npy_header(INDEX_DTYPE, entry.num_packs)) + entry.num_packs * INDEX_DTYPE.itemsize
        found.append(content[place : place + size])
        place += size
        if hashlib.sha256(found[-1]).hexdigest() != entry.index_sha256:
            return None
    return found
