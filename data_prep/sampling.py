"""Drawing documents for the tokenizer: evenly, by a keyed hash, whatever their order and the number of workers.

Apart from `tokenizer_command` so that worker processes do not import the exporter with all of transformers.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.arrays import save_array
from data_prep.clean_store import CleanChunk, pack_document, unpack_document
from data_prep.documents import Chunk, Document
from data_prep.pipeline import Counts, Division, read_documents, through_steps
from data_prep.steps import clean_steps, shape_steps
from data_prep.told import tell
from megatron_codemix.config import PrepConfig

_DRAWN_DTYPE = np.dtype([("key", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("num_bytes", "<u8")])
HELD_OUT = "held out"
_Entry = tuple[int, int, int, int, int]
"""(negative key, chunk, offset, size, UTF-8 bytes of the text)."""


@dataclass(frozen=True)
class DrawTask:
    """A chunk and how to draw from it; pickled to a worker."""

    source: str
    config: PrepConfig
    number: int
    input_bytes: int
    rate: float
    """Share of the documents that are considered at all."""
    file: Path
    """Receives the documents, JSON end to end; where they lie stands in FILE.npy."""
    chunk: Chunk | None
    """Read directly, or"""
    clean: CleanChunk | None
    """from the clean store, without its duplicates."""


@dataclass
class Sample:
    """The documents of smallest key, whose bytes just reach the share: independent of the order they come in."""

    share: int
    """UTF-8 bytes wanted."""
    folder: Path
    """Where the drawn documents lie."""
    num_bytes: int = 0
    _heap: list[_Entry] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Consider what was drawn from a chunk."""
        for key, offset, size, num_bytes in np.load(_index(drawn_file(self.folder, number)), allow_pickle=False).tolist():
            heapq.heappush(self._heap, (-key, number, offset, size, num_bytes))
            self.num_bytes += num_bytes
            while self.num_bytes - self._heap[0][-1] >= self.share:
                self.num_bytes -= heapq.heappop(self._heap)[-1]

    def __len__(self) -> int:
        return len(self._heap)

    def documents(self) -> Iterator[Document]:
        """The drawn documents, in the order of their keys."""
        for _, number, offset, size, _ in sorted(self._heap, key=lambda drawn: (-drawn[0], *drawn[1:])):
            with open(drawn_file(self.folder, number), "rb") as handle:
                handle.seek(offset)
                yield unpack_document(handle.read(size))

    def texts(self) -> list[str]:
        """Their texts."""
        return [document.text for document in self.documents()]


def drawn_file(folder: Path, number: int) -> Path:
    """Where the documents drawn from chunk `number` lie."""
    return folder / f"{number:05d}.json"


def _index(file: Path) -> Path:
    return file.with_suffix(".npy")


class Drawn(NamedTuple):
    """What became of a chunk's documents."""

    number: int
    """Of the chunk."""
    left_out: Counter[str]
    """Why documents that were looked at are not among the drawn ones."""


def draw(task: DrawTask) -> Drawn:
    """Write the training documents of a chunk whose key is small enough to matter, as they will be trained on."""
    rows, offset = [], 0
    left_out: Counter[str] = Counter()
    with open(task.file, "wb") as out:
        for key, document in _drawn(task, left_out):
            content = pack_document(document)
            out.write(content)
            rows.append((key, offset, len(content), len(document.text.encode("utf-8"))))
            offset += len(content)
    save_array(_index(task.file), np.array(rows, _DRAWN_DTYPE))
    return Drawn(task.number, left_out)


def _drawn(task: DrawTask, left_out: Counter[str]) -> Iterator[tuple[int, Document]]:
    config, counts = task.config, Counts()
    division = Division(config.split.validation, config.split.seed)
    limit = task.rate * 2**64
    shape = shape_steps(config, task.source)
    if task.clean is not None:
        index = task.clean.index
        for row, decision in enumerate(task.clean.decisions()):
            tell(int(index["size"][row]), 1, int(index["num_bytes"][row]))
            key = _key(config.tokenizer.seed, int(index["text_hash"][row]))
            if key >= limit:
                continue
            if decision["verdict"]:
                left_out["duplicate"] += 1
            elif division.held_out(document := task.clean.document(row)):
                left_out[HELD_OUT] += 1
            else:
                yield from ((key, one) for one in through_steps(shape, document, counts))
        task.clean.close()
        left_out.update(counts.tally.left_out())
        return
    assert task.chunk is not None
    steps = clean_steps(config, task.source) + shape
    for read in read_documents(task.chunk, config.sources[task.source], counts):
        key = _key(config.tokenizer.seed, read.text_hash)
        if key >= limit:
            continue
        if division.held_out(read.document):
            left_out[HELD_OUT] += 1
        else:
            yield from ((key, one) for one in through_steps(steps, read.document, counts))
            counts.tally.drops.clear()
    left_out.update(counts.tally.left_out())


def _key(seed: int, text_hash: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text_hash}".encode(), digest_size=8).digest(), "big")


def begin_sample(folder: Path, share: int) -> Sample:
    """An empty sample in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Sample(share, folder)


def all_texts(samples: Sequence[Sample]) -> list[str]:
    """The texts of several samples, one after the other."""
    return [text for sample in samples for text in sample.texts()]
