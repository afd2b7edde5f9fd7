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
from megatron_codemix.shards.mapping import ShardFile


class SplitIndex:
    """The packs of all shards, end to end. A "split token" is counted through all shards.

    files: one per shard. packs: structured (num_packs,), the sidecars' rows. The rest are int64 arrays:
    pack_shard: shard of each pack. pack_tokens: tokens of each pack. pack_token: split token at which it begins.
    pack_element: its first token, counted in tokens from the start of its file. shard_token: split token at
    which each shard begins, and the total, (num_shards + 1,).
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Reads every sidecar; raises UserError naming each shard whose files do not fit the manifest."""
        problems: list[str] = []
        parts = [np.empty(0, INDEX_DTYPE)]
        self.files: list[ShardFile] = []
        for entry in manifest.shards:
            try:
                file, rows = open_shard(folder, entry, manifest.dtype.itemsize)
            except UserError as error:
                problems += error.problems
                continue
            self.files.append(file)
            parts.append(rows)
        if problems:
            raise UserError(*problems)
        self.packs = np.concatenate(parts)
        self.pack_shard = np.repeat(np.arange(len(manifest.shards)), [entry.num_packs for entry in manifest.shards])
        self.pack_tokens = self.packs["num_tokens"].astype(np.int64)
        self.pack_token = np.cumsum(self.pack_tokens) - self.pack_tokens
        self.pack_element = (self.packs["tokens_offset"] // manifest.dtype.itemsize).astype(np.int64)
        self.shard_token = np.concatenate([[0], np.cumsum([entry.num_tokens for entry in manifest.shards], dtype=np.int64)])


def open_shard(folder: Path, entry: ShardEntry, token_bytes: int) -> tuple[ShardFile, np.ndarray]:
    """The shard's file and the rows of its sidecar; raises UserError for what does not fit the manifest.

    Looks at the tar's size only. The sidecar is small, so its checksum is compared each time: that finds
    one that was swapped with another shard's.
    """
    tar, sidecar = folder / entry.name, folder / index_name(entry.name)
    try:
        file = ShardFile.of(tar)
    except OSError:
        raise UserError(f"{tar}: shard listed in the manifest, but missing; {REMEDY}") from None
    if file.size != entry.size:
        fault = "truncated" if file.size < entry.size else "longer than written"
        raise UserError(f"{tar}: {fault} ({file.size} bytes, the manifest says {entry.size}); {REMEDY}")
    try:
        content = sidecar.read_bytes()
    except OSError:
        raise UserError(f"{sidecar}: sidecar of {entry.name} is missing; {REMEDY}") from None
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise UserError(f"{sidecar}: altered, or the sidecar of another shard (its sha256 is not the manifest's); {REMEDY}")
    header = npy_header(INDEX_DTYPE, entry.num_packs)
    if not content.startswith(header) or len(content) != len(header) + entry.num_packs * INDEX_DTYPE.itemsize:
        raise UserError(f"{sidecar}: not an index of {entry.num_packs} packs; {REMEDY}")
    rows = np.frombuffer(content, INDEX_DTYPE, offset=len(header))
    problem = _inconsistency(rows, entry, token_bytes)
    if problem:
        raise UserError(f"{sidecar}: {problem}; {REMEDY}")
    return file, rows


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
