"""Collecting what tells a benchmark's items: runs of words, and whole pieces (data_prep/benchmark_pieces.py).

```
words     runs of `ngram_words` words
whole     questions and sentences of docstrings, of 6 … 40 words
code      runs of `code_ngram_words` words of code, names made the same (data_prep/code_words.py)
program   solutions, prompts with their solutions, tests: of code words without round brackets
```
A run tells something only when it is not said everywhere: `1, 2, 3, 4 …` and `for i in range(len(` stand in every repository.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data_prep.benchmark_pieces import code_pieces, docstring_sentences, with_names
from data_prep.benchmark_table import CodePieceTable, Piece, PieceTable, RunTable
from data_prep.benchmarks import BenchmarkFile, Item, field_names, items, listed
from data_prep.code_words import KEPT_NAMES, NAME, code_words, is_kept_word, operators, without_brackets
from data_prep.words import Words, windows, words
from megatron_codemix.config import Decontaminate
from megatron_codemix.errors import UserError

RUNS = ("words", "code")
"""Tables of runs; of pieces: `whole` (PieceTable) and `program` (CodePieceTable)."""
SHORTEST = PieceTable.ANCHOR
"""Words of the shortest question that is looked for: what is shorter is alike by chance."""
LONGEST = 40
"""… and of the longest one: those that are longer have many runs that tell them."""
_SENTENCE = 8
# A program, solution or test counts when it has so many words, so many different ones, and of keywords, built-in names and numbers
# so many different ones. docs/decisions/083-decontamination.md says what other limits would find.
_PROGRAM, _PROGRAM_DISTINCT, _PROGRAM_KEPT = 14, 6, 3
_MOST_PROGRAM = 400
# A text is no question when so many items of a file have it, and so large a share of them: it says where they are from.
_OFTEN, _OFTEN_SHARE = 4, 0.01
_BATCH_CHARACTERS = 1 << 22
# A run of words tells when so large a share of it are different words of two characters or more that are no numbers and no
# keywords: 4 of 10 …
_TELLING = 0.4
# … and a whole question, when so many are, and so many are words: keywords are words of English too …
_WHOLE_TELLING, _WHOLE_WORDS = 3, 5
# … and one of code, when so large a share of it are different words: 11 of 20, of them keywords, built-in names or numbers 5,
# and without the numbers 2; and when it is no prose, in which names stand side by side: at most 2.
_CODE_DISTINCT, _CODE_KEPT, _CODE_NAMES, _CODE_PROSE = 0.55, 0.25, 0.1, 0.1


class TableBuilder:
    """Collects the runs and pieces of benchmark files; items are numbered through all of them."""

    def __init__(self, settings: Decontaminate) -> None:
        self._settings = settings
        self._hashes = {name: [np.empty(0, np.uint64)] for name in RUNS}
        self._items = {name: [np.empty(0, np.uint32)] for name in RUNS}
        self._pieces: dict[str, list[Piece]] = {"whole": [], "program": []}
        self._names: dict[str, None] = {}
        self._first = 0

    def add(self, file: BenchmarkFile) -> dict[str, int]:
        """Take a file's items. Returns how many there are, and how many of them have a run or a piece that tells them.

        Raises UserError for a file without a text that counts: with nothing is nothing compared.
        """
        counts, has_text = {"items": 0, "compared": 0}, False
        for batch in _batches(items(file, self._settings.fields)):
            has_text = has_text or any(text.strip() for row in batch for text in row.texts)
            told = self._add_words(batch) | self._add_code(batch)
            self._first += len(batch)
            counts["items"] += len(batch)
            counts["compared"] += int(told.sum())
        if not has_text:
            raise UserError(_nothing(file, self._settings.fields))
        if self._settings.fields:
            self._names.update(dict.fromkeys(field_names(file)))
        return counts

    def check_fields(self) -> None:
        """Once all files were added. Raises UserError for a name of `decontaminate.fields` that none of them has."""
        absent = [name for name in self._settings.fields if name not in self._names]
        if self._names and absent:
            has = listed(list(self._names))
            raise UserError(f"decontaminate.fields: no benchmark file has {', '.join(absent)}; they have {has}; correct it, or take it out")

    def save(self, folder: Path) -> None:
        """Write the tables."""
        for name in RUNS:
            RunTable(np.concatenate(self._hashes[name]), np.concatenate(self._items[name])).save(folder, name)
        PieceTable(self._pieces["whole"]).save(folder, "whole")
        CodePieceTable(self._pieces["program"]).save(folder, "program")

    def _add_words(self, batch: list[Item]) -> np.ndarray:
        size = self._settings.ngram_words
        found, telling, worded, string, item = _joined_words(batch)
        told = self._add_runs("words", found.hashes, string, item, len(batch), _tells(found, telling, size))
        for begin, end in _questions(batch, string, item):
            if end - begin <= LONGEST:
                told[item[begin]] |= self._add_whole(int(item[begin]), *(column[begin:end] for column in (found.hashes, telling, worded)))
        for number, row in enumerate(batch):
            for sentence in (one for text in row.texts[: row.own] for one in docstring_sentences(text)):
                hashes, telling_, worded_ = _kinds_of_words(sentence)
                if _SENTENCE <= len(hashes) <= LONGEST:
                    told[number] |= self._add_whole(number, hashes, telling_, worded_)
        # A question that is too short counts with its answers, behind which it stands where it leaked.
        together = np.where(told[item], -1, item)
        runs = _tells(found, telling, size) & (together[: max(len(item) - size + 1, 0)] >= 0)
        return told | self._add_runs("words", found.hashes, together, item, len(batch), runs)

    def _add_whole(self, item: int, hashes: np.ndarray, telling: np.ndarray, worded: np.ndarray) -> bool:
        good = len(set(hashes[telling].tolist())) >= _WHOLE_TELLING and len(set(hashes[worded].tolist())) >= _WHOLE_WORDS
        if good:
            self._pieces["whole"].append(Piece(self._first + item, hashes.copy()))
        return good

    def _add_code(self, batch: list[Item]) -> np.ndarray:
        size = self._settings.code_ngram_words
        hashes, string, item = _joined_code(batch)
        told = self._add_runs("code", hashes, string, item, len(batch), telling_code_runs(hashes, size))
        for number, row in enumerate(batch):
            for piece in dict.fromkeys(code_pieces(row.texts)):
                for text in dict.fromkeys((piece, with_names(piece))):
                    found = without_brackets(code_words(text).hashes)[:_MOST_PROGRAM]
                    if _is_program(found):
                        self._pieces["program"].append(Piece(self._first + number, found))
                        told[number] = True
        return told

    def _add_runs(self, table: str, hashes: np.ndarray, owner: np.ndarray, item: np.ndarray, items: int, good: np.ndarray) -> np.ndarray:
        """Add the `good` runs that lie within one owner; returns which of the items they are of."""
        told = np.zeros(items, bool)
        if len(good):
            good = good & (owner[: len(good)] == owner[len(owner) - len(good) :])
            runs, first = np.unique(windows(hashes, len(hashes) - len(good) + 1)[good], return_index=True)
            self._hashes[table].append(runs)
            self._items[table].append((self._first + item[: len(good)][good][first]).astype(np.uint32))
            told[item[: len(good)][good]] = True
        return told


def _nothing(file: BenchmarkFile, fields: Sequence[str]) -> str:
    if not fields or not field_names(file):
        return f"decontaminate.against: {file.path} holds no item with a text; mend it, or take it out"
    names, has = ", ".join(fields), listed(field_names(file))
    return (
        f"decontaminate.fields: no row of {file.path} has a text in {names}; its rows have {has}; correct the fields, or take the file out"
    )


def _is_program(hashes: np.ndarray) -> bool:
    """Whether a piece of code is long and various enough to be no other one's by chance."""
    if len(hashes) < _PROGRAM:
        return False
    different = set(hashes.tolist())
    return len(different) >= _PROGRAM_DISTINCT and len(different - _no_kept_words()) >= _PROGRAM_KEPT


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
    return found, *_kinds(text, found), string, _items(batch)[string]


def _kinds_of_words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = words(text)
    return found.hashes, *_kinds(text, found)


def _kinds(text: str, found: Words) -> tuple[np.ndarray, np.ndarray]:
    """(whether each word may tell something, whether it is a word at all)."""
    digits = np.isin(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")[found.starts], np.arange(48, 58))
    worded = (found.ends - found.starts >= 2) & ~digits
    return worded & ~np.isin(found.hashes, _keywords()), worded


def _joined_code(batch: Sequence[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes of all code words, number of the string of each, number of its item)."""
    strings = [text for row in batch for text in row.texts]
    found = code_words("\n".join(strings))
    string = np.searchsorted(np.cumsum([len(one.encode("utf-8", "surrogatepass")) + 1 for one in strings]), found.places, "right")
    return found.hashes, string, _items(batch)[string]


def _questions(batch: Sequence[Item], string: np.ndarray, item: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first word, the one behind the last) of the first of each item's own texts that is long enough, and not that of many items.

    That is its question, as a rule; choices and answers may be what everybody says.
    """
    if not len(string):
        return
    begins = np.flatnonzero(np.concatenate([[True], string[1:] != string[:-1]]))
    ends = np.append(begins[1:], len(string))
    texts = [text for row in batch for text in row.texts]
    own = np.concatenate([np.arange(len(row.texts)) < row.own for row in batch])
    often = {text for text, count in Counter(texts).items() if count >= max(_OFTEN, _OFTEN_SHARE * len(batch))}
    seen = -1
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        number, text = int(item[begin]), texts[string[begin]]
        if number != seen and own[string[begin]] and end - begin >= SHORTEST and text not in often:
            seen = number
            yield begin, end


def _items(batch: Sequence[Item]) -> np.ndarray:
    """Number of the item of each string."""
    return np.repeat(np.arange(len(batch)), [len(row.texts) for row in batch])


@cache
def _keywords() -> np.ndarray:
    return words(" ".join(KEPT_NAMES)).hashes


@cache
def _code_keywords() -> np.ndarray:
    return code_words(" ".join(KEPT_NAMES)).hashes


@cache
def _no_kept_words() -> frozenset[int]:
    return frozenset([int(NAME), *operators().tolist()])
