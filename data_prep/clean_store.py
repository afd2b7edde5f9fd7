"""Clean documents of a chunk on disk: what steps that must see all documents (duplicates, repositories) work on.

```
documents.bin     a zstd frame per document, end to end: JSON of the document
index.npy         structured, a row per document (CLEAN_DTYPE)
signatures.npy    uint32 (documents, permutations); only where near duplicates are looked for
ids.npy           uint64: ids of all documents as they were read; only where the prep file names an id_field
drops.jsonl.zst   what steps left out
record.json       counts and the key of the settings; its folder appears whole
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from data_prep.documents import Document, Symbol
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind, document_id

CLEAN_DTYPE = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("num_bytes", "<u8"), ("document_id", "<u8"), ("text_hash", "<u8"), ("group", "<u8")]
)
"""A document's row: where its frame lies, UTF-8 bytes of its text, `document_id` of its name, `text_hash`, `document_id` of its group."""
DECISION_DTYPE = np.dtype([("verdict", "u1"), ("kept_instead", "<u8")])
"""0 keep, 1 exact duplicate, 2 near duplicate; id of the document that stays."""
_OPTIONAL = ("group", "language", "license", "path")


def pack_document(document: Document) -> bytes:
    """A document as JSON; `fields` are left behind."""
    row: dict[str, Any] = {"name": document.name, "text": document.text}
    row.update({name: value for name in _OPTIONAL if (value := getattr(document, name)) is not None})
    if document.segments is not None:
        row["segments"] = [(start, int(kind)) for start, kind in document.segments]
    if document.symbols:
        row["symbols"] = [(symbol.offset, symbol.name, int(symbol.kind)) for symbol in document.symbols]
    return orjson.dumps(row)


def unpack_document(content: bytes) -> Document:
    """What `pack_document` packed."""
    row = orjson.loads(content)
    segments = row.get("segments")
    return Document(
        row["name"],
        row["text"],
        *(row.get(name) for name in _OPTIONAL),
        segments=None if segments is None else tuple((start, Kind(kind)) for start, kind in segments),
        symbols=tuple(Symbol(offset, name, Kind(kind)) for offset, name, kind in row.get("symbols", ())),
    )


class CleanWriter:
    """Writes documents.bin, index.npy and signatures.npy into a folder that is not yet visible."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._rows: list[tuple[int, ...]] = []
        self._signatures: list[np.ndarray] = []
        self._offset = 0
        self.text_bytes = 0
        """UTF-8 bytes of the documents added so far."""

    def __enter__(self) -> CleanWriter:
        self._handle = open(self._folder / "documents.bin", "wb")
        return self

    def add(self, document: Document, num_bytes: int, text_hash: int, signature: np.ndarray | None = None) -> None:
        """Append a document. signature: of all documents or of none."""
        frame = self._compressor.compress(pack_document(document))
        self._handle.write(frame)
        group = document_id(document.group or "")
        self._rows.append((self._offset, len(frame), num_bytes, document_id(document.name), text_hash, group))
        self._offset += len(frame)
        self.text_bytes += num_bytes
        if signature is not None:
            self._signatures.append(signature)

    def __len__(self) -> int:
        return len(self._rows)

    def __exit__(self, kind, error, traceback) -> None:
        self._handle.close()
        if error is None:
            np.save(self._folder / "index.npy", np.array(self._rows, CLEAN_DTYPE))
            if self._signatures:
                np.save(self._folder / "signatures.npy", np.stack(self._signatures))


class CleanChunk:
    """Reads the clean documents of a chunk; pickles as its place."""

    def __init__(self, name: str, folder: Path, decisions: Path) -> None:
        self.name = name
        """'SOURCE/00012'."""
        self.folder = Path(folder)
        self.decisions_file = Path(decisions)
        """Where `decide` writes what becomes of its documents (DECISION_DTYPE, a row per document)."""

    def __reduce__(self):
        return CleanChunk, (self.name, self.folder, self.decisions_file)

    @property
    def index(self) -> np.ndarray:
        """Structured (n,), CLEAN_DTYPE; read anew each time, so that many chunks do not stay in memory."""
        return self._load("index.npy", CLEAN_DTYPE)

    @property
    def signatures(self) -> np.ndarray:
        """uint32 (n, permutations), mapped; (0, 0) where there are none."""
        file = self.folder / "signatures.npy"
        return np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else np.empty((0, 0), np.uint32)

    def _load(self, name: str, dtype: np.dtype) -> np.ndarray:
        try:
            array = np.load(self.folder / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(str(error)) from None
        if array.dtype != dtype:
            raise self._damaged(f"{name} is {array.dtype}")
        return array

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.folder}: damaged clean documents ({why}); remove that folder and run the same command again")

    @cached_property
    def _open(self) -> tuple[np.ndarray, Any, Any]:
        return self.index[["offset", "size"]], open(self.folder / "documents.bin", "rb"), zstandard.ZstdDecompressor()

    def document(self, row: int) -> Document:
        """Document `row`. Raises UserError where the store is damaged."""
        places, handle, decompressor = self._open
        offset, size = map(int, places[row])
        try:
            handle.seek(offset)
            return unpack_document(decompressor.decompress(handle.read(size)))
        except (OSError, zstandard.ZstdError, ValueError, KeyError) as error:
            raise self._damaged(f"document {row}: {error}") from None

    def text(self, row: int) -> str:
        """Text of document `row`."""
        return self.document(row).text

    def documents(self, rows: Sequence[int] | np.ndarray) -> Iterator[Document]:
        """Documents `rows`, in that order."""
        for row in rows:
            yield self.document(int(row))

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        if "_open" in self.__dict__:
            self._open[1].close()
            del self.__dict__["_open"]

    def decisions(self) -> np.ndarray:
        """Structured (n,), DECISION_DTYPE: what `decide` wrote; all are kept where nothing was decided."""
        if not self.decisions_file.exists():
            return np.zeros(self.index.size, DECISION_DTYPE)
        decisions = np.load(self.decisions_file, allow_pickle=False)
        if decisions.shape != self.index.shape or decisions.dtype != DECISION_DTYPE:
            raise UserError(f"{self.decisions_file}: does not belong to these documents; remove it and run the same command again")
        return decisions
