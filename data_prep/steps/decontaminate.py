"""Documents that hold items of benchmarks are left out: runs of words of theirs, and of their code with all names made the same."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.benchmark_table import SHORTEST, TABLES, RunTable, TableBuilder
from data_prep.benchmarks import BenchmarkFile, benchmark_files
from data_prep.code_words import code_words
from data_prep.documents import Document, Drop, Tally
from data_prep.words import BLOCK_CHARACTERS, windows, word_blocks
from megatron_codemix.config import Decontaminate, SourceSpec
from megatron_codemix.files import atomic_directory, read_json, remove_folder, sha256_json, write_json
from megatron_codemix.progress import progress

_FOLDER, _RECORD = "benchmarks", "record.json"
_VERSION = 5
"""Of the tables: to be raised with every change of what they hold."""
_EXCERPT = 200


def prepare(settings: Decontaminate, work: Path) -> None:
    """Make the tables of the benchmark files below `work`, if those of the same files and settings are not there.

    Raises UserError where a file is missing or cannot be read.
    """
    files = benchmark_files(settings.against)
    folder, key = work / _FOLDER, _key(settings, files)
    if _made_with(folder) == key:
        return
    remove_folder(folder) if folder.exists() else None
    try:
        with atomic_directory(folder) as temporary:
            _make(settings, files, key, temporary)
    except OSError as error:
        # Another task of the same array was faster.
        if (error.errno not in (errno.EEXIST, errno.ENOTEMPTY) and not isinstance(error, FileExistsError)) or _made_with(folder) != key:
            raise


def compared_against(settings: Decontaminate) -> list[str]:
    """What manifests record as `decontaminated_against`: 'NAME sha256:HEX' of every benchmark file."""
    return [file.record for file in benchmark_files(settings.against)]


def benchmark_counts(work: Path) -> list[dict[str, Any]]:
    """Of every benchmark file that `prepare` read: {name, sha256, items, compared}. Items that are not compared have no run of words
    by which they could be told from other texts: they are too short, or all numbers."""
    return read_json(work / _FOLDER / _RECORD, "record of the benchmarks")["files"]


class Decontaminator:
    """Leaves out documents that hold items of benchmarks.

    folder: what `prepare` was given as `work`.
    """

    name = "decontaminate"

    def __init__(self, settings: Decontaminate, spec: SourceSpec, folder: Path) -> None:
        place = folder / _FOLDER
        record = read_json(place / _RECORD, "record of the benchmarks")
        self._names = [file["name"] for file in record["files"]]
        self._sizes: list[int] = record["sizes"]
        self._tables = {name: RunTable.load(place, name) for name in TABLES}
        self._words, self._code_words = settings.ngram_words, settings.code_ngram_words
        self._is_code = spec.modality == "code"

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """The document, or why it goes: the file that holds the item, and what they share."""
        found = self._find_words(document.text)
        if found is not None:
            return Drop(f"holds text of {self._names[found[0]]}", found[1])
        if self._is_code:
            found = self._find_code(document.text)
            if found is not None:
                return Drop(f"holds code of {self._names[found[0]]}", found[1])
        return document

    def _find_words(self, text: str) -> tuple[int, str] | None:
        """(number of the file, the words shared with it) of the first run of words in a table."""
        for block in word_blocks(text, overlap=max(self._words, SHORTEST, *self._sizes) - 1):
            places, files = self._tables["words"].find(windows(block.hashes, self._words))
            size = self._words
            if not len(places):
                places, files, size = self._find_short(block.hashes)
            if len(places):
                start, end = int(block.starts[places[0]]), int(block.ends[places[0] + size - 1])
                return int(files[0]), _shown(text[start:end])
        return None

    def _find_short(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """(places, files, words) of whole questions."""
        likely, files = self._tables["short"].find(windows(hashes, SHORTEST)) if self._sizes else (np.empty(0, np.intp), np.empty(0))
        for size in self._sizes if len(likely) else ():
            runs = windows(hashes, size)
            begins = likely[likely < len(runs)]
            places, files = self._tables["whole"].find(runs[begins])
            if len(places):
                return begins[places], files, size
        return np.empty(0, np.intp), files, 0

    def _find_code(self, text: str) -> tuple[int, str] | None:
        """The same for runs of code words."""
        kept = np.empty(0, np.uint64)
        for part in _parts(text):
            found = code_words(part)
            hashes = np.concatenate([kept, found.hashes]) if len(kept) else found.hashes
            places, files = self._tables["code"].find(windows(hashes, self._code_words))
            if len(places):
                first = max(int(places[0]) - len(kept), 0)
                last = min(first + self._code_words, len(found.places)) - 1
                shared = part.encode("utf-8", "surrogatepass")[found.places[first] : found.places[last] + 1]
                return int(files[0]), _shown(shared.decode("utf-8", "ignore"))
            kept = hashes[max(len(hashes) - self._code_words + 1, 0) :]
        return None


def _parts(text: str) -> Iterator[str]:
    """The text in pieces of bounded length that end behind a line, where there are lines."""
    start = 0
    while start < len(text):
        end = start + BLOCK_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _shown(text: str) -> str:
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= _EXCERPT else line[:_EXCERPT] + " …"


def _key(settings: Decontaminate, files: list[BenchmarkFile]) -> str:
    chosen = settings.model_dump(mode="json", exclude={"against"})
    return sha256_json({"version": _VERSION, "settings": chosen, "files": [[file.name, file.sha256] for file in files]})


def _made_with(folder: Path) -> str | None:
    return read_json(folder / _RECORD, "record of the benchmarks")["key"] if (folder / _RECORD).is_file() else None


def _make(settings: Decontaminate, files: list[BenchmarkFile], key: str, folder: Path) -> None:
    builder, records = TableBuilder(settings), []
    with progress("benchmarks", len(files), "files") as bar:
        for number, file in enumerate(files):
            records.append({"name": file.name, "sha256": file.sha256, **builder.add(file, number)})
            bar.advance(note=file.name)
    builder.save(folder)
    write_json(folder / _RECORD, {"key": key, "sizes": sorted(builder.sizes), "files": records})
