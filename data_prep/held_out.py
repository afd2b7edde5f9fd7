"""Held-out documents: kept aside while training documents are written, then checked against them and published.

OUTPUT/SOURCE/.held-out/ holds `documents.jsonl` (id, text, language, license), `training-hashes.bin` (a 64-bit
`text_hash` of every training document, little endian) and `settings.json`. It appears whole or not at all, and stays:
it is what an interrupted run resumes from.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from data_prep.documents import text_hash
from data_prep.tokenise import Tokenised
from megatron_codemix.files import atomic_directory, atomic_file, read_json, write_json

DOCUMENTS_NAME = "documents.jsonl.gz"
_CHUNK_HASHES = 1 << 20


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out document."""

    id: str
    text: str
    language: str | None
    license: str | None

    @property
    def hash(self) -> int:
        """Its `text_hash`."""
        return text_hash(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Aside:
    """A finished `.held-out` folder."""

    folder: Path

    def matches(self, settings: dict[str, Any]) -> bool:
        """Whether it is there and was made with these settings."""
        file = self.folder / "settings.json"
        return file.is_file() and read_json(file, "record of held-out documents") == settings

    def documents(self) -> Iterator[HeldOut]:
        """Every held-out document, in the source's order."""
        with open(self.folder / "documents.jsonl", "rb") as handle:
            for line in handle:
                yield HeldOut(**orjson.loads(line))

    def training_hashes(self) -> Iterator[np.ndarray]:
        """`text_hash` of every training document, uint64, in chunks."""
        with open(self.folder / "training-hashes.bin", "rb") as handle:
            while (chunk := np.fromfile(handle, "<u8", _CHUNK_HASHES)).size:
                yield chunk


class AsideWriter:
    """Receives units' results in order."""

    def __init__(self, rows: BinaryIO, hashes: BinaryIO) -> None:
        self._rows, self._hashes = rows, hashes
        self.num_held_out = 0

    def add(self, result: Tokenised) -> None:
        """Keep a unit's held-out documents and the hashes of its training documents."""
        for (name, text), language, license in zip(result.rows, result.held_out.languages, result.held_out.licenses, strict=True):
            self._rows.write(orjson.dumps({"id": name, "text": text, "language": language, "license": license}) + b"\n")
        self._hashes.write(np.array(result.train.hashes, "<u8").tobytes())
        self.num_held_out += len(result.rows)


@contextmanager
def writing_aside(aside: Aside, settings: dict[str, Any]) -> Iterator[AsideWriter]:
    """Write `.held-out`; it appears when the block ends without an exception, and takes the place of an older one."""
    for leftover in aside.folder.parent.glob(f".{aside.folder.name}.*.tmp"):
        shutil.rmtree(leftover)
    shutil.rmtree(aside.folder, ignore_errors=True)
    with atomic_directory(aside.folder) as folder:
        with open(folder / "documents.jsonl", "wb") as rows, open(folder / "training-hashes.bin", "wb") as hashes:
            yield AsideWriter(rows, hashes)
        write_json(folder / "settings.json", settings)


def repeated_hashes(held_out: np.ndarray, training: Iterable[np.ndarray]) -> set[int]:
    """Those of `held_out` (uint64 text hashes) that are among the training documents' hashes."""
    wanted = np.unique(held_out)
    found: set[int] = set()
    for chunk in training:
        found.update(chunk[np.isin(chunk, wanted)].tolist())
    return found


def write_documents(path: Path, documents: Iterable[HeldOut]) -> None:
    """Write `documents.jsonl.gz` ({"id", "text"} a line); the same documents give the same bytes."""
    with atomic_file(path) as handle, gzip.GzipFile(filename="", fileobj=handle, mode="wb", compresslevel=6, mtime=0) as packed:
        for document in documents:
            packed.write(orjson.dumps({"id": document.id, "text": document.text}) + b"\n")
