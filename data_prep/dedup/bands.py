"""Locality-sensitive hashing on disk: which pairs of documents are worth being compared.

A signature is divided into bands of a few rows; documents that agree in a whole band share a bucket. Buckets are found by
sorting, a band at a time, so the memory needed does not grow with the number of documents (Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.arrays import save_array
from data_prep.clean_store import CleanChunk
from data_prep.dedup.external_sort import ExternalSort
from data_prep.dedup.signature import is_empty
from data_prep.words import mixed
from megatron_codemix.errors import UserError

BAND_DTYPE = np.dtype([("hash", "<u8"), ("row", "<u8")])
PAIR_DTYPE = np.dtype([("second", "<u8"), ("first", "<u8")])
"""Rows of two documents, counted over all chunks; first < second."""
_RECALL = 0.98
# Of so many pairs the signatures are in memory together: some 70 MB. Fewer would open every chunk more often.
_BATCH_PAIRS = 32768
_MOST_LEADERS = 64
_MOST_TOGETHER = 1 << 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Corpus:
    """The documents of all chunks, numbered in their order. Pickles small: it is sent to workers."""

    chunks: Sequence[CleanChunk]
    starts: np.ndarray
    """(chunks + 1,) int64: number of each chunk's first document."""
    folder: Path
    """For intermediate files."""
    threshold: float
    """Jaccard similarity."""

    def places(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(chunk, where in `rows`, rows within the chunk) for each chunk that holds some of them."""
        chunk_of = np.searchsorted(self.starts, rows.astype(np.int64), "right") - 1
        order = np.argsort(chunk_of, kind="stable")
        edges = np.flatnonzero(np.diff(chunk_of[order])) + 1
        for where in np.split(order, edges) if len(order) else ():
            chunk = int(chunk_of[where[0]])
            yield chunk, where, rows[where].astype(np.int64) - self.starts[chunk]

    def signatures(self, rows: np.ndarray) -> np.ndarray:
        """Signatures (n, permutations) uint32 of the documents `rows` (n,)."""
        found: np.ndarray | None = None
        for chunk, where, local in self.places(rows):
            part = np.asarray(self.chunks[chunk].signatures[local])
            if found is None:
                found = np.empty((len(rows), part.shape[1]), np.uint32)
            found[where] = part
        assert found is not None
        return found


def band_layout(permutations: int, threshold: float) -> tuple[int, int]:
    """(bands, rows in each): the most rows, so the fewest needless comparisons, at which two documents whose similarity is just
    the threshold t share a bucket with probability 1 − (1 − tʳ)ᵇ of at least 0.98."""
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return permutations, 1


def band_hashes(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Hashes (bands, n) uint64 of the bands of (n, permutations) uint32 signatures; different for equal values in different bands."""
    hashes = np.empty((bands, len(signatures)), np.uint64)
    for band in range(bands):
        total = np.full(len(signatures), band + 1, np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            total *= _FACTOR
            total += signatures[:, column]
        hashes[band] = mixed(total)
    return hashes


def write_bands(chunk: CleanChunk, left_out: np.ndarray, threshold: float, path: Path) -> int:
    """Write `path`.hashes.npy (bands, n) and `path`.rows.npy (n,) for a chunk's documents that are not `left_out` (bool, a row each)
    and have words; returns the number of bands, 0 where there are no documents. Raises UserError where signatures are missing."""
    signatures = chunk.signatures
    if len(signatures) != len(left_out):
        raise UserError(
            f"{chunk.name}: {len(signatures)} signatures of {len(left_out)} documents; remove its folder and run the same command again"
        )
    rows, bands = np.flatnonzero(~left_out), 0
    if len(rows):
        kept = np.asarray(signatures[rows])
        worded = ~is_empty(kept)
        rows, kept = rows[worded], kept[worded]
        bands, each = band_layout(kept.shape[1], threshold)
        save_array(Path(f"{path}.hashes.npy"), band_hashes(kept, bands, each))
    save_array(Path(f"{path}.rows.npy"), rows)
    return bands


def band_pairs(corpus: Corpus, band: int, paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """Pairs (PAIR_DTYPE) of documents that share a bucket of one band and whose signatures agree about as the threshold asks.

    paths: of every chunk, what `write_bands` was given.
    """
    with ExternalSort(corpus.folder / f"band-{band:04d}", BAND_DTYPE, ["hash", "row"]) as sort:
        for path, start in zip(paths, corpus.starts.tolist()):
            rows = np.load(f"{path}.rows.npy", allow_pickle=False)
            if len(rows):
                records = np.empty(len(rows), BAND_DTYPE)
                records["hash"] = np.load(f"{path}.hashes.npy", mmap_mode="r", allow_pickle=False)[band]
                records["row"] = rows + start
                sort.add(records)
        waiting: list[np.ndarray] = []
        for records in sort.groups("hash", _MOST_TOGETHER):
            waiting.append(records)
            if sum(map(len, waiting)) >= 2 * _BATCH_PAIRS:
                yield from _bucket_pairs(corpus, np.concatenate(waiting))
                waiting = []
        if waiting:
            yield from _bucket_pairs(corpus, np.concatenate(waiting))


def _bucket_pairs(corpus: Corpus, records: np.ndarray) -> Iterator[np.ndarray]:
    """In every bucket the others are compared with the first; those unlike it with the first of themselves, and so on."""
    hashes, rows = records["hash"].copy(), records["row"].copy()
    for _ in range(_MOST_LEADERS):
        new = np.concatenate([[True], hashes[1:] != hashes[:-1]])
        leaders = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
        others = rows != leaders  # the first of a large bucket comes once with each of its pieces
        hashes, rows, leaders = hashes[others], rows[others], leaders[others]
        if not len(rows):
            return
        like = np.empty(len(rows), bool)
        for start in range(0, len(rows), _BATCH_PAIRS):
            part = slice(start, start + _BATCH_PAIRS)
            like[part] = _agree(corpus, leaders[part], rows[part])
        pairs = np.empty(int(like.sum()), PAIR_DTYPE)
        pairs["first"], pairs["second"] = leaders[like], rows[like]
        if len(pairs):
            yield pairs
        hashes, rows = hashes[~like], rows[~like]
        if not len(rows):
            return


def _agree(corpus: Corpus, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the share of equal places is not more than three standard deviations below the threshold: (n,) bool."""
    unique, where = np.unique(np.concatenate([first, second]), return_inverse=True)
    signatures = corpus.signatures(unique)
    equal = (signatures[where[: len(first)]] == signatures[where[len(first) :]]).mean(axis=1)
    threshold = corpus.threshold
    return equal >= threshold - 3 * (threshold * (1 - threshold) / signatures.shape[1]) ** 0.5
