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
# Values of a signature that are looked at in crowded buckets, and how many documents may share one of them.
_RARE_COLUMNS, _FEW = 32, 8
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
    permutations: int
    """Values of a signature."""

    @property
    def least_share(self) -> float:
        """Share of equal values from which on two documents are compared: three standard deviations below the threshold."""
        return self.threshold - 3 * self._deviation

    @property
    def sure_share(self) -> float:
        """… and from which on they are hardly less similar than the threshold."""
        return self.threshold + 2 * self._deviation

    @property
    def _deviation(self) -> float:
        return (self.threshold * (1 - self.threshold) / self.permutations) ** 0.5

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


def band_pairs(corpus: Corpus, band: int, paths: Sequence[Path], given_up: list[int]) -> Iterator[np.ndarray]:
    """Pairs (PAIR_DTYPE) of documents that share a bucket of one band and whose signatures agree about as the threshold asks.

    paths: of every chunk, what `write_bands` was given. given_up: gets numbers of documents that were not compared with all of
    their bucket that may be like them.
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
                yield from _bucket_pairs(corpus, np.concatenate(waiting), given_up)
                waiting = []
        if waiting:
            yield from _bucket_pairs(corpus, np.concatenate(waiting), given_up)


def _bucket_pairs(corpus: Corpus, records: np.ndarray, given_up: list[int]) -> Iterator[np.ndarray]:
    """In every bucket the others are compared with the first; those unlike it with the first of themselves, and so on.

    What is left at the end, and those whose likeness to a first one is in doubt, may still be like another: `_rare_pairs`.
    """
    doubtful: list[np.ndarray] = []
    left = records
    for _ in range(_MOST_LEADERS):
        if not len(left):
            break
        new = np.concatenate([[True], left["hash"][1:] != left["hash"][:-1]])
        leaders = left["row"][np.maximum.accumulate(np.where(new, np.arange(len(left)), 0))]
        others = left["row"] != leaders  # the first of a large bucket comes once with each of its pieces
        left, leaders = left[others], leaders[others]
        shares = _shares(corpus, leaders, left["row"])
        like = shares >= corpus.least_share
        if like.any():
            yield _pairs(leaders[like], left["row"][like])
        doubtful.append(left[like & (shares < corpus.sure_share)])
        left = left[~like]
    if len(left):
        given_up.append(len(left))
    doubtful.append(left)
    yield from _rare_pairs(corpus, np.concatenate(doubtful))


def _rare_pairs(corpus: Corpus, records: np.ndarray) -> Iterator[np.ndarray]:
    """Of the documents of each bucket those that share a value of their signatures which few of the bucket have.

    Where documents share a long header, their bucket says little: what they share beyond it does.
    """
    records = np.sort(records, order=["hash", "row"])
    alone = np.concatenate([[True], records["hash"][1:] != records["hash"][:-1], [True]])
    records = records[~(alone[1:] & alone[:-1])] if len(records) else records
    for start in range(0, len(records), _BATCH_PAIRS):
        part = records[start : start + _BATCH_PAIRS]
        signatures = corpus.signatures(part["row"])
        found = []
        for column in range(0, signatures.shape[1], max(1, signatures.shape[1] // _RARE_COLUMNS)):
            keys = mixed(part["hash"] * _FACTOR + signatures[:, column])
            order = np.argsort(keys, kind="stable")  # the earlier one of equal keys first
            edges = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]], [True]]))
            few = np.repeat(np.diff(edges) <= _FEW, np.diff(edges))
            for apart in range(1, _FEW):
                same = (keys[order[apart:]] == keys[order[:-apart]]) & few[apart:]
                if not same.any():
                    break
                found.append(order[:-apart][same] * len(part) + order[apart:][same])
        if found:
            first, second = np.divmod(np.unique(np.concatenate(found)), len(part))
            for begin in range(0, len(first), _BATCH_PAIRS):
                one, other = (part["row"][side[begin : begin + _BATCH_PAIRS]] for side in (first, second))
                like = (one != other) & (_shares(corpus, one, other) >= corpus.least_share)
                if like.any():
                    yield _pairs(one[like], other[like])


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    pairs = np.empty(len(first), PAIR_DTYPE)
    pairs["first"], pairs["second"] = first, second
    return pairs


def _shares(corpus: Corpus, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The share of places at which two signatures are equal, an estimate of the similarity: (n,) float64."""
    shares = np.empty(len(first))
    for start in range(0, len(first), _BATCH_PAIRS):
        part = slice(start, start + _BATCH_PAIRS)
        unique, where = np.unique(np.concatenate([first[part], second[part]]), return_inverse=True)
        signatures, size = corpus.signatures(unique), len(first[part])
        shares[part] = (signatures[where[:size]] == signatures[where[size:]]).mean(axis=1)
    return shares
