"""Held-out documents: kept aside by whoever writes a chunk's shards, then checked against all training documents and published.

In the record of a chunk: `held-out.jsonl` (a row per document), `held-out-tokens.bin` (their tokens end to end, in the
shards' dtype) and `training-hashes.npy` (a 64-bit `text_hash` of every training document). They stay: another source may
be added later, and is then compared with them.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from data_prep.arrays import save_array
from data_prep.documents import Document
from data_prep.tokenise import Encoded
from megatron_codemix.files import atomic_file
from megatron_codemix.shards import Kind

DOCUMENTS_NAME = "documents.jsonl.gz"
_ROWS, _TOKENS, _HASHES = "held-out.jsonl", "held-out-tokens.bin", "training-hashes.npy"
_BLOCK_HASHES = 1 << 16


class HeldOut(NamedTuple):
    """One held-out document."""

    id: str
    text: str
    language: str | None
    license: str | None
    num_bytes: int
    hash: int
    """`text_hash` of its text."""
    encoded: Encoded


class AsideWriter:
    """Writes a chunk's part into a folder that is not yet visible."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes: list[int] = []
        self._blocks = [np.empty(0, np.uint64)]
        self.num_held_out = 0

    def __enter__(self) -> AsideWriter:
        self._rows = open(self._folder / _ROWS, "wb")
        self._tokens = open(self._folder / _TOKENS, "wb")
        return self

    def training(self, text_hash: int) -> None:
        """Remember a training document."""
        self._hashes.append(text_hash)
        if len(self._hashes) == _BLOCK_HASHES:
            self._close_block()

    def held_out(self, document: Document, num_bytes: int, text_hash: int, encoded: Encoded) -> None:
        """Keep a held-out document."""
        row = {"id": document.name, "text": document.text, "language": document.language, "license": document.license}
        segments = None if encoded.segments is None else [(start, int(kind)) for start, kind in encoded.segments]
        row |= {"num_bytes": num_bytes, "hash": text_hash, "tokens": encoded.tokens.size, "segments": segments}
        self._rows.write(orjson.dumps(row) + b"\n")
        self._tokens.write(encoded.tokens.data)
        self.num_held_out += 1

    def _close_block(self) -> None:
        self._blocks.append(np.array(self._hashes, np.uint64))
        self._hashes.clear()

    def __exit__(self, kind, error, traceback) -> None:
        self._rows.close()
        self._tokens.close()
        if error is None:
            self._close_block()
            save_array(self._folder / _HASHES, np.concatenate(self._blocks))


@dataclass(frozen=True)
class Aside:
    """All that was kept aside of a source."""

    folders: Sequence[Path]
    """Records of its chunks, in order."""
    dtype: np.dtype
    """Of the tokens."""

    def documents(self) -> Iterator[HeldOut]:
        """Every held-out document, in the source's order."""
        for folder in self.folders:
            with open(folder / _ROWS, "rb") as rows, open(folder / _TOKENS, "rb") as tokens:
                for line in rows:
                    row = orjson.loads(line)
                    segments = row.pop("segments")
                    kinds = None if segments is None else [(start, Kind(kind)) for start, kind in segments]
                    encoded = Encoded(np.fromfile(tokens, self.dtype, row.pop("tokens")), kinds)
                    yield HeldOut(**row, encoded=encoded)

    def training_hashes(self) -> Iterator[np.ndarray]:
        """`text_hash` of every training document, uint64, an array a chunk."""
        for folder in self.folders:
            yield np.load(folder / _HASHES, allow_pickle=False)


def repeated_hashes(held_out: np.ndarray, training: Iterable[np.ndarray]) -> set[int]:
    """Those of `held_out` (uint64 text hashes) that are among the training documents' hashes."""
    wanted = np.unique(held_out)
    found: set[int] = set()
    for chunk in training:
        found.update(chunk[np.isin(chunk, wanted)].tolist())
    return found


@contextmanager
def writing_documents(path: Path) -> Iterator[Callable[[HeldOut], object]]:
    """Write `documents.jsonl.gz` ({"id", "text"} a line), which appears whole; the same documents give the same bytes."""
    # level 2: held-out texts are few, but level 6 took longer than their tokens
    with atomic_file(path) as handle, gzip.GzipFile(filename="", fileobj=handle, mode="wb", compresslevel=2, mtime=0) as packed:
        yield lambda one: packed.write(orjson.dumps({"id": one.id, "text": one.text}) + b"\n")
