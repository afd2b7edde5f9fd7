"""Where every pack of a split lies: its sidecars, each read and checked when its shard is first needed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from megatron_codemix.config import Url
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
from megatron_codemix.shards.places import Place


class SplitIndex:
    """The packs of all shards, end to end. A "split token" is counted through all shards.

    place: where their files lie. packs: structured (num_packs,), the sidecars' rows. The rest are int64 arrays:
    pack_shard: shard of each pack. pack_tokens: tokens of each pack. pack_token: split token at which it begins.
    pack_element: its first token, counted in tokens from the start of its file. shard_token: split token at
    which each shard begins, and the total, (num_shards + 1,).

    A sidecar is read when its shard is first needed (`need`), so that opening a source of thousands of shards
    costs no more than its manifest. Until then the shard's packs are empty and begin where the shard does, which
    keeps pack_token sorted.
    """

    def __init__(self, where: Path | Url, place: Place, manifest: Manifest) -> None:
        """where: the split's folder, for messages."""
        self.place = place
        self.shard_sizes = [entry.size for entry in manifest.shards]
        """Bytes of each shard's file."""
        num_packs = [entry.num_packs for entry in manifest.shards]
        self.first_pack = np.concatenate([[0], np.cumsum(num_packs, dtype=np.int64)])
        self.shard_token = np.concatenate([[0], np.cumsum([entry.num_tokens for entry in manifest.shards], dtype=np.int64)])
        self.packs = np.zeros(int(self.first_pack[-1]), INDEX_DTYPE)
        self.pack_shard = np.repeat(np.arange(len(manifest.shards)), num_packs)
        self.pack_tokens = np.zeros(len(self.packs), np.int64)
        self.pack_token = self.shard_token[self.pack_shard]
        self.pack_element = np.zeros(len(self.packs), np.int64)
        self.has_segments = False
        """Whether a pack of the shards needed so far has segments."""
        self.complete = not manifest.shards
        """Whether every sidecar has been read."""
        self._where, self._manifest = where, manifest
        self._read = np.zeros(len(manifest.shards), bool)

    def need(self, shards: np.ndarray) -> None:
        """Read the sidecars of these shards, (n,) integers, unless they have been; raises UserError naming each damaged one."""
        if self.complete or self._read[shards].all():
            return
        problems: list[str] = []
        for shard in np.unique(shards[~self._read[shards]]).tolist():
            try:
                entry = self._manifest.shards[shard]
                rows = sidecar_rows(self.place.sidecar(shard), self._where, entry, self._manifest.dtype.itemsize)
            except UserError as error:
                problems += error.problems
                continue
            place = slice(int(self.first_pack[shard]), int(self.first_pack[shard + 1]))
            tokens = rows["num_tokens"].astype(np.int64)
            self.packs[place] = rows
            self.pack_tokens[place] = tokens
            self.pack_token[place] += np.cumsum(tokens) - tokens
            self.pack_element[place] = rows["tokens_offset"] // self._manifest.dtype.itemsize
            self.has_segments |= bool(np.any(rows["num_segments"]))
            self._read[shard] = True
        if problems:
            raise UserError(*problems)
        self.complete = bool(self._read.all())


def sidecar_rows(content: bytes, where: Path | Url, entry: ShardEntry, token_bytes: int) -> np.ndarray:
    """The rows of the shard's sidecar; raises UserError for what does not fit the manifest.

    A sidecar is small, so its checksum is compared each time: that finds one that was swapped with another's.
    """
    sidecar = where / index_name(entry.name)
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise UserError(f"{sidecar}: altered, or the sidecar of another shard (its sha256 is not the manifest's); {REMEDY}")
    header = npy_header(INDEX_DTYPE, entry.num_packs)
    if not content.startswith(header) or len(content) != len(header) + entry.num_packs * INDEX_DTYPE.itemsize:
        raise UserError(f"{sidecar}: not an index of {entry.num_packs} packs; {REMEDY}")
    rows = np.frombuffer(content, INDEX_DTYPE, offset=len(header))
    problem = _inconsistency(rows, entry, token_bytes)
    if problem:
        raise UserError(f"{sidecar}: {problem}; {REMEDY}")
    return rows


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
