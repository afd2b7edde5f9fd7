"""Windows, documents and segments of a split, straight from memory-mapped shards.

Window i of a shard at sequence length S is the S+1 tokens [iS, iS+S] of the shard's packs put end to end;
windows of a split are numbered through its shards in order.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_codemix.config import Url
from megatron_codemix.errors import UserError
from megatron_codemix.shards.index import SplitIndex
from megatron_codemix.shards.layout import DOCUMENT_DTYPE, SEGMENT_DTYPE, Kind
from megatron_codemix.shards.manifest import Manifest
from megatron_codemix.shards.mapping import DiskWatch, map_now, will_need
from megatron_codemix.shards.places import FolderPlace, Place

# Rows are widened in blocks that stay in a core's L2 cache.
_BLOCK_BYTES = 1 << 18


class Pack(NamedTuple):
    """One webdataset sample, as views of its arrays."""

    tokens: np.ndarray
    """(num_tokens,), in the shards' dtype."""
    documents: np.ndarray
    """Structured (num_documents,): token_start, num_bytes, document_id."""
    segments: np.ndarray | None
    """Structured (num_segments,): token_start, kind; None: all of it is the source's modality."""


def _check_shape(out: np.ndarray, ids: np.ndarray, sequence_length: int) -> None:
    if out.shape != (ids.size, sequence_length + 1):
        raise ValueError(f"out has shape {out.shape}, must be {(ids.size, sequence_length + 1)}")


def _groups(rows: np.ndarray, shard: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(shard, those of `rows` that lie in it)."""
    numbers = shard[rows]
    order = numbers.argsort(kind="stable")
    numbers = numbers[order]
    bounds = [0, *((numbers[1:] != numbers[:-1]).nonzero()[0] + 1).tolist(), rows.size]
    for low, high in pairwise(bounds):
        if high > low:
            yield int(numbers[low]), rows[order[low:high]]


class Document(NamedTuple):
    """One document of a split."""

    tokens: np.ndarray
    """View of its tokens, (n,), closed by the end-of-text id."""
    row: np.void
    """Its row of the documents array: token_start (within its pack), num_bytes, document_id."""
    segments: list[tuple[int, Kind]] | None
    """(token start within the document, kind) from 0; None: all of it is the source's modality."""


def _spans(rows: np.ndarray, first: int, length: int) -> list[tuple[int, Kind]]:
    """(start, kind) of the part of a pack's segments that covers [first, first + length), counted from `first`."""
    column = rows["token_start"]
    low = bisect_right(column, first) - 1
    high = bisect_left(column, first + length, lo=low)
    return [(max(0, int(row["token_start"]) - first), Kind(int(row["kind"]))) for row in rows[low:high]]


class SplitReader:
    """Reads one split. Opening costs the manifest; sidecars are read and shards mapped when first touched.

    Raises UserError on opening when a shard is missing or truncated, and on reading when a sidecar does not belong to the manifest
    (`read_all_sidecars` looks at all; `verify_split` also compares the shards' checksums). Can be pickled and used after a fork.
    """

    def __init__(self, folder: Path | Url, manifest: Manifest | None = None, place: Place | None = None) -> None:
        """manifest: where another process has read it for this one; place: where the shards of a store lie (`open_split`)."""
        self.folder: Path | Url
        self.place: Place
        if isinstance(folder, Url):
            if manifest is None or place is None:
                raise UserError(f"{folder}: shards of a store are read through a cache; fetch the split and give its path")
            self.folder, self.manifest, self.place = folder, manifest, place
        else:
            self.folder = folder = Path(folder)
            self.manifest = manifest if manifest is not None else Manifest.load(folder)
            self.place = FolderPlace(folder, self.manifest, check=manifest is None)
        self._index = SplitIndex(self.folder, self.place, self.manifest)
        self._dtype = self.manifest.dtype
        self._disk = DiskWatch()
        self._shard_windows: dict[int, np.ndarray] = {}

    def __reduce__(self):
        if self.place.in_store:
            raise TypeError("a reader of shards in a store stays in its process")
        return SplitReader, (self.folder,)

    @property
    def local_folder(self) -> Path:
        """The folder, of a split that lies in one; a store's has none."""
        assert isinstance(self.folder, Path), f"{self.folder}: lies in a store"
        return self.folder

    def read_all_sidecars(self) -> bool:
        """Read and check what is otherwise read when first needed; whether any pack has segments. Raises UserError."""
        self._index.need(np.arange(len(self.manifest.shards)))
        return self._index.has_segments

    def shard_windows(self, sequence_length: int) -> np.ndarray:
        """Windows of each shard at this sequence length, (num_shards,) int64: ⌊(T−1)/S⌋."""
        return np.diff(self._first_windows(sequence_length))

    def shards_of(self, ids: np.ndarray, sequence_length: int) -> np.ndarray:
        """Number of the shard in which each window lies, (n,) int64."""
        return self._first_windows(sequence_length).searchsorted(ids, "right") - 1

    def num_windows(self, sequence_length: int) -> int:
        """Windows at this sequence length: Σ over shards ⌊(T−1)/S⌋."""
        return int(self._first_windows(sequence_length)[-1])

    def _first_windows(self, sequence_length: int) -> np.ndarray:
        """Number of the first window of each shard, and the total: (num_shards + 1,)."""
        found = self._shard_windows.get(sequence_length)
        if found is None:
            if sequence_length < 1:
                raise ValueError(f"sequence_length {sequence_length}: must be at least 1")
            counts = np.maximum(np.diff(self._index.shard_token) - 1, 0) // sequence_length
            found = self._shard_windows[sequence_length] = np.concatenate([[0], np.cumsum(counts)])
        return found

    def _locate(self, ids: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, pack, first token within the pack) of each window."""
        firsts = self._first_windows(sequence_length)
        # As unsigned numbers, negative ids are too large as well.
        if np.count_nonzero(ids.view(np.uint64) >= firsts[-1:].view(np.uint64)):
            raise IndexError(f"{self.folder}: windows {int(ids.min())} … {int(ids.max())} asked for, it has 0 … {int(firsts[-1]) - 1}")
        shard = firsts.searchsorted(ids, "right") - 1
        self._index.need(shard)
        split_token = self._index.shard_token[shard] + (ids - firsts[shard]) * sequence_length
        pack = self._index.pack_token.searchsorted(split_token, "right") - 1
        return shard, pack, split_token - self._index.pack_token[pack]

    def read_windows(self, ids: np.ndarray, sequence_length: int) -> np.ndarray:
        """Tokens of windows, (n, S+1), in the shards' dtype; ids: (n,) integers.

        Raises IndexError for an id outside the split.
        """
        ids = np.asarray(ids, np.int64)
        out = np.empty((ids.size, sequence_length + 1), self._dtype)
        self._gather(ids, sequence_length, out)
        return out

    def read_into(self, ids: np.ndarray, sequence_length: int, out: np.ndarray) -> None:
        """Write the tokens of windows, widened, into out: (n, S+1) int64 (any integer dtype that holds them).

        Raises IndexError for an id outside the split, ValueError for an `out` of another shape.
        """
        ids = np.asarray(ids, np.int64)
        _check_shape(out, ids, sequence_length)
        self._gather(ids, sequence_length, out)

    def _gather(self, ids: np.ndarray, sequence_length: int, out: np.ndarray) -> None:
        width = sequence_length + 1
        shard, pack, first = self._locate(ids, sequence_length)
        whole = first + width <= self._index.pack_tokens[pack]
        element = self._index.pack_element[pack] + first
        rows = np.arange(ids.size)
        if np.count_nonzero(whole) < ids.size:
            for row in rows[~whole].tolist():
                for number, start, length, position in self._pieces(int(pack[row]), int(first[row]), width):
                    out[row, position : position + length] = self._pack_array(number, "tokens", self._dtype)[start : start + length]
            rows = rows[whole]
        cold = self._disk.is_read_from()
        for number, members in _groups(rows, shard):
            if cold:
                will_need(self._map(number), element[members] * self._dtype.itemsize, width * self._dtype.itemsize)
            windows = self._sliding(number, width)
            step = max(1, _BLOCK_BYTES // (width * self._dtype.itemsize))
            for start in range(0, members.size, step):
                some = members[start : start + step]
                out[some] = windows[element[some]]

    def document_starts(self, window: int, sequence_length: int) -> np.ndarray:
        """Positions in [0, S] of a window's tokens at which a document begins: (k,) int64, ascending.

        From the documents array. In bulk it is cheaper to look at tokens already read: since the end-of-text
        id closes documents and occurs nowhere else, position p > 0 begins a document iff token p−1 is that id.
        """
        found = [np.empty(0, np.int64)]
        for pack, first, length, position in self._window_pieces(window, sequence_length):
            column = self._pack_array(pack, "documents", DOCUMENT_DTYPE)["token_start"]
            low = bisect_left(column, first)
            high = bisect_left(column, first + length, lo=low)
            found.append(column[low:high].astype(np.int64) + (position - first))
        return np.concatenate(found)

    def segments(self, window: int, sequence_length: int) -> list[tuple[int, Kind]]:
        """(position, kind) of the segments that cover a window's S+1 tokens, the first at 0; neighbours differ."""
        found: list[tuple[int, Kind]] = []
        for pack, first, length, position in self._window_pieces(window, sequence_length):
            for start, kind in self._pack_segments(pack, first, length):
                if not found or found[-1][1] != kind:
                    found.append((position + start, kind))
        return found

    def kinds_into(self, ids: np.ndarray, sequence_length: int, out: np.ndarray) -> None:
        """Write the kind of every token of windows into out: (n, S+1) uint8 (or another integer dtype)."""
        ids = np.asarray(ids, np.int64)
        _check_shape(out, ids, sequence_length)
        out[...] = self.manifest.kind
        if not self._index.complete:
            self._locate(ids, sequence_length)
        if self._index.has_segments:
            for row, window in enumerate(ids):
                for start, kind in self.segments(int(window), sequence_length):
                    out[row, start:] = kind

    def document(self, number: int) -> Document:
        """Document `number` of the split, 0 … num_documents−1; raises IndexError outside."""
        if not 0 <= number < self.manifest.num_documents:
            raise IndexError(f"{self.folder}: document {number} is outside 0 … {self.manifest.num_documents - 1}")
        shard_ends = np.cumsum([entry.num_documents for entry in self.manifest.shards])
        shard = int(np.searchsorted(shard_ends, number, side="right"))
        self._index.need(np.array([shard]))
        first = int(self._index.first_pack[shard])
        sizes = self._index.packs["num_documents"][first : int(self._index.first_pack[shard + 1])].astype(np.int64)
        ends = np.cumsum(sizes) + int(shard_ends[shard]) - self.manifest.shards[shard].num_documents
        pack = first + int(np.searchsorted(ends, number, side="right"))
        rows = self._pack_array(pack, "documents", DOCUMENT_DTYPE)
        row = number - int(ends[pack - first]) + rows.size
        num_tokens = int(self._index.pack_tokens[pack])
        start, end = int(rows["token_start"][row]), int(rows["token_start"][row + 1]) if row + 1 < rows.size else num_tokens
        segments = self._pack_segments(pack, start, end - start) if self._index.packs["num_segments"][pack] else None
        return Document(self._pack_array(pack, "tokens", self._dtype)[start:end], rows[row], segments)

    def documents(self) -> Iterator[Document]:
        """Every document, in the order they were written."""
        for pack in self.packs():
            bounds = [*pack.documents["token_start"].tolist(), pack.tokens.size]
            for row, (start, end) in zip(pack.documents, pairwise(bounds), strict=True):
                segments = None if pack.segments is None else _spans(pack.segments, start, end - start)
                yield Document(pack.tokens[start:end], row, segments)

    def packs(self) -> Iterator[Pack]:
        """Every pack, in the order they were written: the way to look at whole splits in bulk."""
        self.read_all_sidecars()
        shard, buffer = -1, None
        for pack, row in enumerate(self._index.packs):
            if self._index.pack_shard[pack] != shard:
                shard = int(self._index.pack_shard[pack])
                buffer = map_now(self.place.file(shard))
            yield Pack(
                self._pack_array(pack, "tokens", self._dtype, buffer),
                self._pack_array(pack, "documents", DOCUMENT_DTYPE, buffer),
                self._pack_array(pack, "segments", SEGMENT_DTYPE, buffer) if row["num_segments"] else None,
            )

    def _map(self, shard: int) -> mmap.mmap:
        return self.place.map(shard)

    def _sliding(self, shard: int, width: int) -> np.ndarray:
        """The whole file as tokens, and row e the `width` elements from e on: a view with overlapping rows.

        Indexing it with the rows wanted copies windows at memory speed, without a Python loop over them.
        """
        item = self._dtype.itemsize
        elements = self._index.shard_sizes[shard] // item
        return np.ndarray((elements - width + 1, width), self._dtype, buffer=self._map(shard), strides=(item, item))

    def _pack_array(self, pack: int, name: str, dtype: np.dtype, buffer: mmap.mmap | None = None) -> np.ndarray:
        """View of a member's array, in `buffer` or else the shared map of its shard."""
        row = self._index.packs[pack]
        buffer = self._map(int(self._index.pack_shard[pack])) if buffer is None else buffer
        return np.ndarray((int(row[f"num_{name}"]),), dtype, buffer=buffer, offset=int(row[f"{name}_offset"]))

    def _pack_segments(self, pack: int, first: int, length: int) -> list[tuple[int, Kind]]:
        """(start, kind) of the segments of a pack's tokens [first, first + length), counted from `first`."""
        if not self._index.packs["num_segments"][pack]:
            return [(0, self.manifest.kind)]
        return _spans(self._pack_array(pack, "segments", SEGMENT_DTYPE), first, length)

    def _window_pieces(self, window: int, sequence_length: int) -> Iterator[tuple[int, int, int, int]]:
        _, pack, first = self._locate(np.array([window], np.int64), sequence_length)
        return self._pieces(int(pack[0]), int(first[0]), sequence_length + 1)

    def _pieces(self, pack: int, first: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """(pack, first token in it, tokens, position in the window) of a window that may cross packs."""
        position = 0
        while position < width:
            length = min(width - position, int(self._index.pack_tokens[pack]) - first)
            yield pack, first, length, position
            position, pack, first = position + length, pack + 1, 0
