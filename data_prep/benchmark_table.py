"""The runs of words that tell a benchmark's items, as tables of hashes that every document is looked up in.

```
words.*.npy   runs of `ngram_words` words
whole.*.npy   questions of 6 … 1.5 ngram_words words, whole;  short.*.npy: their first 6 words
code.*.npy    runs of `code_ngram_words` words of code, names made the same (data_prep/code_words.py)
  .hashes     uint64, ascending;  .files: uint32, the file that held it first;  .bits: a bitmap that most lookups end at
record.json   the files, their sha256, how many items they have and how many of these could be told
```
A run tells something only when it is not said everywhere: `1, 2, 3, 4 …` and `for i in range(len(` stand in every repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data_prep.benchmarks import BenchmarkFile, Item, items
from data_prep.code_words import KEPT_NAMES, NAME, code_words, is_kept_word
from data_prep.words import Words, windows, words
from megatron_codemix.config import Decontaminate

SHORTEST = 6
"""Words of the shortest question that is looked for: what is shorter is alike by chance."""
TABLES = ("words", "short", "whole", "code")
_BATCH_CHARACTERS = 1 << 22
_BITS_PER_RUN = 32
# A run of words tells when so large a share of it are different words of two characters or more that are no numbers and no
# keywords: 4 of 10 …
_TELLING = 0.4
# … and a whole question, when so many are, and so many are words: keywords are words of English too …
_WHOLE_TELLING, _WHOLE_WORDS = 3, 5
# … and one of code, when so large a share of it are different words: 11 of 20, of them keywords, built-in names or numbers 5,
# and without the numbers 2; and when it is no prose, in which names stand side by side: at most 2.
_CODE_DISTINCT, _CODE_KEPT, _CODE_NAMES, _CODE_PROSE = 0.55, 0.25, 0.1, 0.1


class RunTable:
    """Hashes of runs and the file that each came from."""

    def __init__(self, hashes: np.ndarray, files: np.ndarray, bits: np.ndarray) -> None:
        self._hashes, self._files, self._bits = hashes, files, bits
        self._mask = np.uint64(8 * len(bits) - 1)

    @classmethod
    def of(cls, hashes: np.ndarray, files: np.ndarray) -> RunTable:
        """From (n,) uint64 and (n,) uint32: of equal hashes the first counts."""
        unique, first = np.unique(hashes, return_index=True)
        size = 1 << max(10, (_BITS_PER_RUN * len(unique) - 1).bit_length())
        bits = np.zeros(size // 8, np.uint8)
        places = unique & np.uint64(size - 1)
        np.bitwise_or.at(
            bits, (places >> np.uint64(3)).astype(np.intp), np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))
        )
        return cls(unique, files[first], bits)

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.*.npy."""
        for part, array in (("hashes", self._hashes), ("files", self._files), ("bits", self._bits)):
            np.save(folder / f"{name}.{part}.npy", array)

    @classmethod
    def load(cls, folder: Path, name: str) -> RunTable:
        """Map what `save` wrote: processes share the memory."""
        parts = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("hashes", "files", "bits"))
        return cls(*(np.asarray(part) for part in parts))

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places in `hashes` of those that are in the table, the file of each)."""
        bits = hashes & self._mask
        found = self._bits[(bits >> np.uint64(3)).astype(np.intp)] >> (bits & np.uint64(7)).astype(np.uint8)
        places = (found & np.uint8(1)).nonzero()[0]
        if not len(places) or not len(self):
            return np.empty(0, np.intp), np.empty(0, np.uint32)
        where = np.minimum(np.searchsorted(self._hashes, hashes[places]), len(self) - 1)
        same = self._hashes[where] == hashes[places]
        return places[same], self._files[where[same]]


class TableBuilder:
    """Collects the runs of benchmark files."""

    def __init__(self, settings: Decontaminate) -> None:
        self._settings = settings
        self._hashes = {name: [np.empty(0, np.uint64)] for name in TABLES}
        self._files = {name: [np.empty(0, np.uint32)] for name in TABLES}
        self.sizes: set[int] = set()
        """Words of the texts in the table `whole`."""

    def add(self, file: BenchmarkFile, number: int) -> dict[str, int]:
        """Take a file's items. Returns how many there are, and how many of them have a run that tells them."""
        counts = {"items": 0, "compared": 0}
        for batch in _batches(items(file, self._settings.fields)):
            told = self._add_words(batch, number) | self._add_code(batch, number)
            counts["items"] += len(batch)
            counts["compared"] += int(told.sum())
        return counts

    def save(self, folder: Path) -> None:
        """Write the tables."""
        for name in TABLES:
            RunTable.of(np.concatenate(self._hashes[name]), np.concatenate(self._files[name])).save(folder, name)

    def _add_words(self, batch: list[Item], number: int) -> np.ndarray:
        size = self._settings.ngram_words
        found, telling, worded, string, item = _joined_words(batch)
        told = self._add_runs("words", found.hashes, string, item, len(batch), _tells(found, telling, size), number)
        begins = _questions(batch, string, item)
        per_string = np.bincount(string, minlength=1)
        for length in range(SHORTEST, min(size + size // 2, len(string) + 1)):
            good = (begins & (per_string[string] == length))[: len(string) - length + 1]
            good &= _distinct(found.hashes, telling, length) >= _WHOLE_TELLING
            good &= _distinct(found.hashes, worded, length) >= _WHOLE_WORDS
            if good.any():
                self.sizes.add(length)
                self._add("whole", windows(found.hashes, length)[good], number)
                self._add("short", windows(found.hashes, SHORTEST)[: len(good)][good], number)
                told[item[: len(good)][good]] = True
        # A question that is too short counts with its answers, behind which it stands where it leaked.
        together = np.where(told[item], -1, item)
        runs = _tells(found, telling, size) & (together[: max(len(item) - size + 1, 0)] >= 0)
        return told | self._add_runs("words", found.hashes, together, item, len(batch), runs, number)

    def _add_code(self, batch: list[Item], number: int) -> np.ndarray:
        size = self._settings.code_ngram_words
        hashes, string, item = _joined_code(batch)
        return self._add_runs("code", hashes, string, item, len(batch), telling_code_runs(hashes, size), number)

    def _add_runs(
        self, table: str, hashes: np.ndarray, owner: np.ndarray, item: np.ndarray, items: int, good: np.ndarray, number: int
    ) -> np.ndarray:
        """Add the `good` runs that lie within one owner; returns which of the items they are of."""
        told = np.zeros(items, bool)
        if len(good):
            good = good & (owner[: len(good)] == owner[len(owner) - len(good) :])
            self._add(table, windows(hashes, len(hashes) - len(good) + 1)[good], number)
            told[item[: len(good)][good]] = True
        return told

    def _add(self, table: str, hashes: np.ndarray, number: int) -> None:
        self._hashes[table].append(np.unique(hashes))
        self._files[table].append(np.full(len(self._hashes[table][-1]), number, np.uint32))


def telling_code_runs(hashes: np.ndarray, size: int) -> np.ndarray:
    """Which runs of `size` of the `code_words` (n,) tell a program: (n - size + 1,) bool."""
    if len(hashes) < size:
        return np.empty(0, bool)
    name = hashes == NAME
    beside = np.concatenate([[False], name[1:] & name[:-1]])
    good = _sums(beside, size) - beside[: len(hashes) - size + 1] <= _CODE_PROSE * size
    good &= _distinct(hashes, np.ones(len(hashes), bool), size) >= _CODE_DISTINCT * size
    good &= _distinct(hashes, is_kept_word(hashes), size) >= _CODE_KEPT * size
    return good & (_distinct(hashes, np.isin(hashes, _code_keywords()), size) >= _CODE_NAMES * size)


def _tells(found: Words, telling: np.ndarray, size: int) -> np.ndarray:
    """Which runs of `size` words, of which some are `telling`, tell: (n - size + 1,) bool."""
    return _distinct(found.hashes, telling, size) >= _TELLING * size


def _distinct(hashes: np.ndarray, counted: np.ndarray, size: int) -> np.ndarray:
    """How many different ones of the `counted` hashes each run of `size` holds: (n - size + 1,) int64."""
    order = np.argsort(hashes, kind="stable")
    before = np.full(len(hashes), -1)
    same = hashes[order[1:]] == hashes[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    starts = np.arange(max(len(hashes) - size + 1, 0))
    total = np.zeros(len(starts), np.int64)
    for place in range(size):
        part = slice(place, place + len(starts))
        total += counted[part] & (before[part] < starts)
    return total


def _sums(values: np.ndarray, size: int) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(values)])
    return total[size:] - total[:-size]


def _batches(rows: Iterator[Item]) -> Iterator[list[Item]]:
    """The items of a file, some megabytes at a time."""
    batch: list[Item] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row.texts)) + 1
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _joined_words(batch: Sequence[Item]) -> tuple[Words, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(all words, whether each may tell something, whether each is a word at all, number of its string, number of its item)."""
    strings = [text for row in batch for text in row.texts]
    text = "\n".join(strings)
    found = words(text)
    string = np.searchsorted(np.cumsum([len(one) + 1 for one in strings]), found.starts, "right")
    digits = np.isin(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")[found.starts], np.arange(48, 58))
    worded = (found.ends - found.starts >= 2) & ~digits
    return found, worded & ~np.isin(found.hashes, _keywords()), worded, string, _items(batch)[string]


def _joined_code(batch: Sequence[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes of all code words, number of the string of each, number of its item)."""
    strings = [text for row in batch for text in row.texts]
    found = code_words("\n".join(strings))
    string = np.searchsorted(np.cumsum([len(one.encode("utf-8", "surrogatepass")) + 1 for one in strings]), found.places, "right")
    return found.hashes, string, _items(batch)[string]


def _questions(batch: Sequence[Item], string: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Which words (their string's and item's numbers given) begin the first of an item's own texts that is long enough.

    That is its question, as a rule; choices and answers may be what everybody says.
    """
    begins = np.flatnonzero(np.concatenate([[True], string[1:] != string[:-1]])) if len(string) else np.empty(0, np.intp)
    own = np.concatenate([np.empty(0, bool), *(np.arange(len(row.texts)) < row.own for row in batch)])
    begins = begins[own[string[begins]] & (np.diff(begins, append=len(string)) >= SHORTEST)]
    _, first = np.unique(item[begins], return_index=True)
    found = np.zeros(len(string), bool)
    found[begins[first]] = True
    return found


def _items(batch: Sequence[Item]) -> np.ndarray:
    """Number of the item of each string."""
    return np.repeat(np.arange(len(batch)), [len(row.texts) for row in batch])


@cache
def _keywords() -> np.ndarray:
    return words(" ".join(KEPT_NAMES)).hashes


@cache
def _code_keywords() -> np.ndarray:
    return code_words(" ".join(KEPT_NAMES)).hashes
