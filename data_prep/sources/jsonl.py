"""JSON lines, plain, gzip or zstd: one document a line.

A document without an id is named FILE@OFFSET, by the place of its line in what the file holds unpacked. Plain files are
read in parts by several workers, so the number of its line is not known where it is read; errors tell it all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import orjson

from data_prep.documents import Document, InputStamp, Tally
from data_prep.sources.inputs import (
    COMPRESSED,
    InputFile,
    Piece,
    data_files,
    in_chunks,
    open_input,
    open_unpacked,
    reading,
    stamp,
    unpacked_ratio,
)
from data_prep.sources.lines import read_lines
from data_prep.sources.rows import OVERSIZED, UNDECODABLE, RowReader
from megatron_codemix.config import SourceSpec

SUFFIXES = tuple(f"{kind}{packing}" for kind in (".jsonl", ".ndjson") for packing in ("", ".gz", ".zst")) + (".json.gz", ".json.zst")
_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1 << 20


def _nothing(num_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class JsonlChunk:
    """Lines that begin in some parts of files."""

    source: str
    spec: SourceSpec
    pieces: list[Piece]
    with_fields: bool

    @property
    def input_bytes(self) -> int:
        """See `Chunk`."""
        return sum(piece.end - piece.start for piece in self.pieces)

    @property
    def input_stamp(self) -> InputStamp:
        """See `Chunk`."""
        return stamp(piece.file for piece in self.pieces)

    def documents(self, tally: Tally, moved: Callable[[int], None] = _nothing) -> Iterator[Document]:
        """See `Chunk.documents`."""
        rows = RowReader(self.source, self.spec, self.with_fields)
        for piece in self.pieces:
            yield from self._piece(piece, rows, tally, moved)

    def _piece(self, piece: Piece, rows: RowReader, tally: Tally, moved: Callable[[int], None]) -> Iterator[Document]:
        file = piece.file
        for number, (offset, line) in enumerate(_lines(piece, self.spec.oversized_bytes, moved), 1):
            if line is None:
                tally.skipped[OVERSIZED] += 1
                continue
            if not offset and line.startswith(_BOM):
                line = line[len(_BOM) :]

            def where(number: int = number) -> str:
                return f"{file.path}:{_lines_before(piece) + number}"

            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if not line or line.isspace():
                    continue
                mend = f"mend that line, or set sources.{self.source}.on_undecodable: skip"
                rows.refuse(tally, UNDECODABLE, where, f"not valid JSON in UTF-8 ({error}); {mend}")
                continue
            document = rows.document(row, f"{file.name}@{offset}", where, tally)
            if document is not None:
                yield document


def _lines(piece: Piece, limit: int, moved: Callable[[int], None]) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of the lines that begin in a piece."""
    packed = piece.file.name.endswith(COMPRESSED)
    with reading(piece.file.path):
        raw, stream = open_unpacked(piece.file)
        with raw, stream:
            if piece.start:
                raw.seek(piece.start - 1)
            yield from read_lines(_told(raw, stream, piece, moved), piece.start, float("inf") if packed else piece.end, limit)


def _told(raw: BinaryIO, stream: BinaryIO, piece: Piece, moved: Callable[[int], None]) -> Callable[[int], bytes]:
    """`stream.read` that tells how many bytes of the piece it has passed."""
    done = piece.start

    def read(size: int) -> bytes:
        nonlocal done
        block = stream.read(size)
        position = min(raw.tell(), piece.end)
        moved(position - done)
        done = position
        return block

    return read


def _lines_before(piece: Piece) -> int:
    """Line ends before the first line of a piece, to tell its place."""
    if not piece.start:
        return 0
    count, left = 0, piece.start - 1
    with reading(piece.file.path), open_input(piece.file) as raw:
        while left > 0 and (block := raw.read(min(left, _BLOCK_BYTES))):
            count += block.count(b"\n")
            left -= len(block)
    return count + 1  # and the one that ends the line before the piece, wherever it is


class JsonlSource:
    """Files of JSON lines, or folders searched for them."""

    def __init__(self, name: str, spec: SourceSpec, with_fields: bool = False) -> None:
        self.name, self.spec, self.with_fields = name, spec, with_fields

    @cached_property
    def _files(self) -> list[InputFile]:
        return data_files(self.name, self.spec, SUFFIXES)

    def inputs(self) -> list[tuple[str, int]]:
        """See `Source.inputs`."""
        return [(file.name, file.size) for file in self._files]

    def chunks(self) -> list[JsonlChunk]:
        """See `Source.chunks`: plain files are divided where they are large, compressed ones cannot be."""
        grouped = in_chunks(self._files, ratio=unpacked_ratio, divisible=lambda file: not file.name.endswith(COMPRESSED))
        return [JsonlChunk(self.name, self.spec, pieces, self.with_fields) for pieces in grouped]
