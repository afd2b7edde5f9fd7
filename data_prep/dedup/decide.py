"""Which documents of all chunks are duplicates of earlier ones: exact, then near.

```
FOLDER/exact/00012.npy, FOLDER/near/00012.npy   duplicates of chunk 12 (DROP_DTYPE)
FOLDER/bands/00012.{hashes,rows}.npy            its band hashes (bands.py)
FOLDER/pairs/0003.bin                           pairs that share a bucket of band 3 (PAIR_DTYPE)
```
All of it is made anew by each call, and removed at its end. Memory: 128 MiB of sorting a process, one chunk's index, and nothing
that grows with the number of documents.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.arrays import save_array
from data_prep.clean_store import DECISION_DTYPE, CleanChunk
from data_prep.dedup.bands import PAIR_DTYPE, Corpus, band_pairs, write_bands
from data_prep.dedup.clusters import Comparison, KeptInstead, near_duplicates
from data_prep.dedup.external_sort import ExternalSort
from data_prep.workers import Workers
from megatron_codemix.config import Deduplicate, NearDuplicates
from megatron_codemix.files import atomic_file
from megatron_codemix.progress import progress

KEEP, EXACT, NEAR = 0, 1, 2
"""Verdicts."""
DROP_DTYPE = np.dtype([("row", "<u8"), ("kept_instead", "<u8")])
"""A document, numbered over all chunks, and the id of the one that stays."""
_TEXT_DTYPE = np.dtype([("text_hash", "<u8"), ("row", "<u8"), ("document_id", "<u8")])
_LINK_DTYPE = np.dtype([("kept", "<u8"), ("row", "<u8")])
_PAIRS_TOGETHER = 1024
_READ_PAIRS = 1 << 18


def decide(chunks: Sequence[CleanChunk], settings: Deduplicate, folder: Path, workers: int = 1) -> dict[str, int]:
    """Write every chunk's decisions (DECISION_DTYPE, a row per document) to its `decisions_file`, when all are known.

    chunks: of all sources that are looked at, in the order in which the first of several duplicates stays.
    folder: for intermediate files; what is there goes. workers: processes; the decisions do not depend on them.
    Returns counts: documents, exact and near duplicates, pairs compared, and `given_up`, documents that were compared with the rest
    of a crowded bucket only where they share a rare value (a document counts for every such bucket). Raises UserError for damaged
    clean documents, OSError for a full disk.
    """
    shutil.rmtree(folder, ignore_errors=True)
    starts = np.cumsum([0, *(len(chunk.index) for chunk in chunks)])
    near = settings.near
    corpus = Corpus(chunks, starts, folder, near.threshold if near else 1.0, near.permutations if near else 1)
    counts = {"documents": int(starts[-1]), "exact": 0, "near": 0, "compared": 0, "given_up": 0}
    counts["exact"] = _save_by_chunk(corpus, "exact", _exact(corpus) if settings.exact else iter(()))
    if near is not None:
        with Workers(workers, _start, (corpus, near)) as pool:
            pairs = _Counted(_similar_pairs(corpus, pool, _band_pairs(corpus, pool, counts)))
            counts["near"] = _save_by_chunk(corpus, "near", _near(corpus, near, pairs))
            counts["compared"] = pairs.compared
    for number, chunk in enumerate(chunks):
        decisions = np.zeros(int(starts[number + 1] - starts[number]), DECISION_DTYPE)
        for verdict, name in ((EXACT, "exact"), (NEAR, "near"))[: 1 if near is None else 2]:
            drops = np.load(_file(corpus, name, number), allow_pickle=False)
            local = drops["row"].astype(np.int64) - starts[number]
            decisions["verdict"][local] = verdict
            decisions["kept_instead"][local] = drops["kept_instead"]
        assert chunk.decisions_file is not None
        with atomic_file(chunk.decisions_file) as handle:
            save_array(handle, decisions)
    shutil.rmtree(folder, ignore_errors=True)
    return counts


def _exact(corpus: Corpus) -> Iterator[np.ndarray]:
    """Documents whose text has the hash of an earlier one's: DROP_DTYPE in order."""
    with (
        ExternalSort(corpus.folder / "texts", _TEXT_DTYPE, ["text_hash", "row"]) as texts,
        ExternalSort(corpus.folder / "equal", DROP_DTYPE, ["row"]) as drops,
    ):
        for chunk, start in zip(corpus.chunks, corpus.starts.tolist()):
            index = chunk.index
            records = np.empty(len(index), _TEXT_DTYPE)
            records["text_hash"], records["document_id"] = index["text_hash"], index["document_id"]
            records["row"] = np.arange(start, start + len(index))
            texts.add(records)
        before: np.ndarray = np.empty(0, _TEXT_DTYPE)
        for block in texts.blocks():
            # What stays of the group that the last block ended in stands before this one.
            records = np.concatenate([before, block])
            new = np.concatenate([[True], records["text_hash"][1:] != records["text_hash"][:-1]])
            leaders = np.maximum.accumulate(np.where(new, np.arange(len(records)), 0))
            found = np.empty(int((~new).sum()), DROP_DTYPE)
            found["row"], found["kept_instead"] = records["row"][~new], records["document_id"][leaders[~new]]
            drops.add(found)
            before = records[leaders[-1] : leaders[-1] + 1]
        yield from drops.blocks()


def _near(corpus: Corpus, settings: NearDuplicates, similar: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Documents like an earlier one that stays: DROP_DTYPE in order."""
    compare = Comparison(corpus, settings.shingle_words)
    with (
        KeptInstead(corpus.folder / "kept-instead.bin") as kept_instead,
        ExternalSort(corpus.folder / "links", _LINK_DTYPE, ["kept"]) as links,
        ExternalSort(corpus.folder / "like", DROP_DTYPE, ["row"]) as drops,
    ):
        found: list[tuple[int, int]] = []
        for row, kept in near_duplicates(similar, compare.is_similar, kept_instead):
            found.append((kept, row))
            if len(found) == _READ_PAIRS:
                links.add(np.array(found, _LINK_DTYPE))
                found = []
        links.add(np.array(found, _LINK_DTYPE))
        compare.close()
        for number, records in _by_chunk(corpus, links.blocks(), "kept"):
            if len(records):
                named = np.empty(len(records), DROP_DTYPE)
                named["row"] = records["row"]
                local = records["kept"].astype(np.int64) - corpus.starts[number]
                named["kept_instead"] = corpus.chunks[number].index["document_id"][local]
                drops.add(named)
        yield from drops.blocks()


def _band_pairs(corpus: Corpus, pool: Workers, counts: dict[str, int]) -> Iterator[np.ndarray]:
    """Pairs of all bands (PAIR_DTYPE), as they come. Counts in what was given up."""
    (corpus.folder / "bands").mkdir(parents=True)
    (corpus.folder / "pairs").mkdir()
    bands = 0
    with progress("duplicates: bands", len(corpus.chunks), "chunks") as bar:
        for found in pool.map(_write_bands, range(len(corpus.chunks))):
            bands = max(bands, found)
            bar.advance()
    with progress("duplicates: buckets", bands, "bands") as bar:
        for path, given_up in pool.map(_write_pairs, range(bands)):
            counts["given_up"] += given_up
            size = path.stat().st_size // PAIR_DTYPE.itemsize
            for start in range(0, size, _READ_PAIRS):
                yield np.fromfile(path, PAIR_DTYPE, min(_READ_PAIRS, size - start), offset=start * PAIR_DTYPE.itemsize)
            path.unlink()
            bar.advance()


def _similar_pairs(corpus: Corpus, pool: Workers, pairs: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pairs, which of them are similar by the exact similarity): each pair once, in order of (second, first)."""
    with ExternalSort(corpus.folder / "compared", PAIR_DTYPE, ["second", "first"]) as sort:
        for records in pairs:
            sort.add(records)
        with progress("duplicates: comparisons", sort.count, "pairs") as bar:
            done = 0
            for slice_, similar, seen in pool.map(_compare, _slices(sort)):
                bar.advance(seen - done)
                done = seen
                yield slice_, similar


def _slices(sort: ExternalSort) -> Iterator[tuple[np.ndarray, int]]:
    """(some pairs, each once; records of the sort up to them)."""
    last, seen = None, 0
    for block in sort.blocks():
        new = np.ones(len(block), bool)
        new[1:] = block[1:] != block[:-1]
        new[0] = last is None or block[0] != last
        last = block[-1]
        unique = block[new]
        seen += len(block)
        for start in range(0, len(unique), _PAIRS_TOGETHER):
            yield unique[start : start + _PAIRS_TOGETHER], seen


class _Counted:
    """The similar ones among compared pairs, counting the pairs."""

    def __init__(self, compared: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        self._pairs = compared
        self.compared = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for pairs, similar in self._pairs:
            self.compared += len(pairs)
            yield from pairs[similar].tolist()


def _save_by_chunk(corpus: Corpus, name: str, blocks: Iterator[np.ndarray]) -> int:
    """Save records (DROP_DTYPE, in order) to a file for each chunk; returns how many there are."""
    (corpus.folder / name).mkdir(parents=True)
    count = 0
    for number, records in _by_chunk(corpus, blocks, "row"):
        save_array(_file(corpus, name, number), records if len(records) else np.empty(0, DROP_DTYPE))
        count += len(records)
    return count


def _by_chunk(corpus: Corpus, blocks: Iterator[np.ndarray], field: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number, the records whose `field` is a document of the chunk) for every chunk; the records come in order of that field."""
    parts: list[np.ndarray] = []
    number, last = 0, len(corpus.chunks) - 1
    for block in blocks:
        while number < last and len(block) and block[field][-1] >= corpus.starts[number + 1]:
            size = int(np.searchsorted(block[field], np.uint64(corpus.starts[number + 1])))
            yield number, np.concatenate([*parts, block[:size]])
            parts, block, number = [], block[size:], number + 1
        parts.append(block)
    while number <= last:
        yield number, np.concatenate(parts) if parts else np.empty(0)
        parts, number = [], number + 1


def _file(corpus: Corpus, name: str, number: int) -> Path:
    return corpus.folder / name / f"{number:05d}.npy"


class _Here:
    """What a worker process works on."""

    corpus: Corpus
    compare: Comparison


def _start(corpus: Corpus, settings: NearDuplicates) -> None:
    _Here.corpus, _Here.compare = corpus, Comparison(corpus, settings.shingle_words)


def _write_bands(number: int) -> int:
    corpus = _Here.corpus
    left_out = np.zeros(int(corpus.starts[number + 1] - corpus.starts[number]), bool)
    exact = np.load(_file(corpus, "exact", number), allow_pickle=False)
    left_out[exact["row"].astype(np.int64) - corpus.starts[number]] = True
    return write_bands(corpus.chunks[number], left_out, corpus.threshold, _bands_file(corpus, number))


def _write_pairs(band: int) -> tuple[Path, int]:
    corpus, given_up = _Here.corpus, list[int]()
    path = corpus.folder / "pairs" / f"{band:04d}.bin"
    with open(path, "wb") as handle:
        for pairs in band_pairs(corpus, band, [_bands_file(corpus, number) for number in range(len(corpus.chunks))], given_up):
            handle.write(pairs.data)
    return path, sum(given_up)


def _bands_file(corpus: Corpus, number: int) -> Path:
    return corpus.folder / "bands" / f"{number:05d}"


def _compare(item: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray, int]:
    pairs, seen = item
    return pairs, np.array([_Here.compare.is_similar(first, second) for second, first in pairs.tolist()], bool), seen
