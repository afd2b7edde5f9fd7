"""JSON lines, plain, gzip or zstd: one document a line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import zstandard

from data_prep.documents import Document, Tally, each_once, unique_names
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError
from megatron_codemix.zstd import open_zstd

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_BLOB_BYTES = 4 << 20


@dataclass(slots=True)
class JsonlUnit:
    """Whole lines of one file."""

    source: str
    spec: SourceSpec
    path: str
    name: str
    first_line: int
    """Number of its first line, from 1."""
    blob: bytes
    input_bytes: int

    def documents(self, tally: Tally) -> Iterator[Document]:
        """See `Unit.documents`."""
        for number, line in enumerate(self.blob.split(b"\n"), self.first_line):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if self.spec.on_undecodable == "skip":
                    tally.skipped["undecodable"] += 1
                    continue
                raise UserError(
                    f"{self.path}:{number}: not valid JSON in UTF-8 ({error}); mend that line, "
                    f"or set sources.{self.source}.on_undecodable: skip"
                ) from None
            yield self._document(row, number)

    def _document(self, row: Any, number: int) -> Document:
        if not isinstance(row, dict):
            raise UserError(f"{self.path}:{number}: a line must be a JSON object, this is {type(row).__name__}; mend that line")
        spec = self.spec
        text = self._field(row, spec.text_field, "text_field", number)
        if not isinstance(text, str):
            raise UserError(
                f"{self.path}:{number}: field '{spec.text_field}' is {type(text).__name__}, not a string; "
                f"set sources.{self.source}.text_field to the key of the text"
            )
        group = _string(self._field(row, spec.group_field, "group_field", number)) if spec.group_field else None
        name = str(self._field(row, spec.id_field, "id_field", number)) if spec.id_field else f"{self.name}:{number}"
        if spec.id_field and group is not None:
            name = f"{group}/{name}"  # a path is often unique within its repository only
        language = row.get(spec.language_field) if spec.language_field else None
        license = row.get(spec.license_field) if spec.license_field else None
        return Document(name, text, group, _string(language), _string(license))

    def _field(self, row: dict[str, Any], key: str, setting: str, number: int) -> Any:
        if key not in row:
            has = ", ".join(map(repr, list(row)[:8])) or "nothing"
            raise UserError(f"{self.path}:{number}: no field '{key}' (it has {has}); set sources.{self.source}.{setting}")
        return row[key]


def _string(value: Any) -> str | None:
    return None if value is None else str(value)


class JsonlSource:
    """Files of JSON lines, or folders searched for them."""

    def __init__(self, name: str, spec: SourceSpec) -> None:
        self.name, self.spec = name, spec

    def _files(self) -> list[tuple[Path, Path]]:
        found: list[tuple[Path, Path]] = []
        for path in self.spec.paths:
            if path.is_dir():
                inside = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
                if not inside:
                    raise UserError(f"sources.{self.name}.paths: {path}: no file in it ends in {', '.join(SUFFIXES)}; check the path")
                found += [(path, file) for file in inside]
            elif path.is_file():
                found.append((path, path))
            else:
                raise UserError(f"sources.{self.name}.paths: {path}: no such file or folder; check the path")
        return each_once(self.name, found)

    def inputs(self) -> list[tuple[str, int]]:
        """See `Source.inputs`."""
        files = self._files()
        return [(name, file.stat().st_size) for name, (_, file) in zip(unique_names(files), files, strict=True)]

    def units(self) -> Iterator[JsonlUnit]:
        """See `Source.units`: lines in blobs of some 4 MiB."""
        files = self._files()
        for name, (_, file) in zip(unique_names(files), files, strict=True):
            with open(file, "rb") as raw:
                done = 0
                for first_line, blob in _blobs(file, raw):
                    position = raw.tell()
                    yield JsonlUnit(self.name, self.spec, str(file), name, first_line, blob, position - done)
                    done = position


def _decompressed(path: Path, raw: BinaryIO) -> Any:
    if path.name.endswith(".gz"):
        return gzip.GzipFile(fileobj=io.BufferedReader(_Plain(raw), 1 << 20), mode="rb")
    if path.name.endswith(".zst"):
        return open_zstd(raw)
    return raw


class _Plain(io.RawIOBase):
    """Lets a large buffer stand before `raw`: gzip reads 8 KiB at a time otherwise."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)  # type: ignore[attr-defined]


def _blobs(path: Path, raw: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) until the end of the file."""
    stream = _decompressed(path, raw)
    rest: list[bytes] = []
    line = 1
    while True:
        try:
            block = stream.read(_BLOB_BYTES)
            if stream is not raw and not raw.tell():
                raise EOFError("the file is empty")
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise UserError(f"{path}: cannot be decompressed near line {line} ({error}); fetch the file again") from None
        if not block:
            break
        end = block.rfind(b"\n") + 1
        if not end:
            rest.append(block)
            continue
        blob = b"".join((*rest, block[:end]))
        rest = [block[end:]]
        yield line, blob
        line += blob.count(b"\n")
    if last := b"".join(rest):
        yield line, last
