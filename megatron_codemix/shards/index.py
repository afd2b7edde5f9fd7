"""Where every pack of a split lies: its sidecars, read and checked when the split is opened."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from megatron_codemix.errors import UserError
from megatron_codemix.shards.layout import (
    ALIGNMENT,
    DOCUMENT_DTYPE,
    INDEX_DTYPE,
    SEGMENT_DTYPE,
    index_name,
    npy_header,
)
from megatron_codemix.shards.manifest import REMEDY, Manifest, ShardEntry


class SplitIndex:
    """The packs of all shards, end to end, as int64 arrays; "split token" counts tokens through all shards.

    packs: structured (num_packs,), the sidecar's columns. pack_shard: shard of each pack. pack_token: split
    token at which each pack begins. shard_token: split token at which each shard begins, (num_shards + 1,).
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Reads every sidecar; raises UserError naming each shard whose files do not fit the manifest."""
        problems: list[str] = []
        parts = [np.empty(0, INDEX_DTYPE)]
        for entry in manifest.shards:
            rows, problem = read_sidecar(folder, entry, manifest.dtype.itemsize)
            if problem:
                problems.append(f"{problem}; {REMEDY}")
            parts.append(rows)
        if problems:
            raise UserError(*problems)
        self.packs = np.concatenate(parts)
        self.pack_shard = np.repeat(np.arange(len(manifest.shards)), [entry.num_packs for entry in manifest.shards])
        self.pack_tokens = self.packs["num_tokens"].astype(np.int64)
        self.pack_token = np.cumsum(self.pack_tokens) - self.pack_tokens
        self.shard_token = np.concatenate([[0], np.cumsum([entry.num_tokens for entry in manifest.shards], dtype=np.int64)])
        # In tokens from the start of the file: what a view of the whole file as tokens is indexed by.
        self.pack_element = (self.packs["tokens_offset"] // manifest.dtype.itemsize).astype(np.int64)


def read_sidecar(folder: Path, entry: ShardEntry, token_bytes: int) -> tuple[np.ndarray, str | None]:
    """The rows of a shard's sidecar, and what is wrong with the shard's files (None: nothing).

    Looks at the tar's size only. The sidecar is small, so its checksum is compared each time: that finds
    one that was swapped with another shard's.
    """
    nothing = np.empty(0, INDEX_DTYPE)
    tar, sidecar = folder / entry.name, folder / index_name(entry.name)
    try:
        size = tar.stat().st_size
    except OSError:
        return nothing, f"{tar}: shard listed in the manifest, but missing"
    if size != entry.size:
        fault = "truncated" if size < entry.size else "longer than written"
        return nothing, f"{tar}: {fault} ({size} bytes, the manifest says {entry.size})"
    try:
        content = sidecar.read_bytes()
    except OSError:
        return nothing, f"{sidecar}: sidecar of {entry.name} is missing"
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        return nothing, f"{sidecar}: altered, or the sidecar of another shard (its sha256 is not the manifest's)"
    header = npy_header(INDEX_DTYPE, entry.num_packs)
    if not content.startswith(header) or len(content) != len(header) + entry.num_packs * INDEX_DTYPE.itemsize:
        return nothing, f"{sidecar}: not an index of {entry.num_packs} packs"
    rows = np.frombuffer(content, INDEX_DTYPE, offset=len(header))
    problem = _inconsistency(rows, entry, token_bytes)
    return rows, f"{sidecar}: {problem}" if problem else None


def _inconsistency(rows: np.ndarray, entry: ShardEntry, token_bytes: int) -> str | None:
    """Why these rows cannot describe the shard, or None."""
    size = np.uint64(entry.size)
    for name, item_bytes in (("tokens", token_bytes), ("documents", DOCUMENT_DTYPE.itemsize), ("segments", SEGMENT_DTYPE.itemsize)):
        offsets, counts = rows[f"{name}_offset"], rows[f"num_{name}"]
        # Divided, not multiplied: a huge count must not wrap round.
        if np.any(offsets > size) or np.any(counts > (size - np.minimum(offsets, size)) // np.uint64(item_bytes)):
            return f"its {name} lie outside {entry.name}"
        if np.any(offsets % np.uint64(ALIGNMENT)):
            return f"its {name} are not {ALIGNMENT}-byte aligned"
        if name != "segments" and np.any((counts == 0) | (offsets == 0)):
            return f"a pack without {name}"
    for name in ("num_tokens", "num_documents"):
        total, listed = int(rows[name].sum()), getattr(entry, name)
        if total != listed:
            return f"its {name} add up to {total}, the manifest says {listed}"
    return None
