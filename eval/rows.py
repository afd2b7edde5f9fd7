"""Rows of a jsonl file (.jsonl, .jsonl.gz, .jsonl.zst), each with its place; bad ones are named as FILE:LINE, together."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from megatron_codemix.errors import UserError

try:
    import zstandard

    from megatron_codemix.zstd import open_zstd
except ImportError:  # an evaluation environment may hold torch and transformers only
    zstandard = open_zstd = None

Made = TypeVar("Made")

MOST_TOLD = 10
"""Bad rows of a file that are named; the others are counted."""

_UNREADABLE: tuple[type[BaseException], ...] = (OSError, EOFError, zlib.error)
if zstandard is not None:
    _UNREADABLE += (zstandard.ZstdError,)


@dataclass(frozen=True)
class Row:
    """One JSON object and where it stands; the getters raise UserError for a missing or wrong value."""

    path: Path
    line: int
    value: dict[str, Any]

    def problem(self, message: str) -> UserError:
        """A UserError that begins with this row's place."""
        return UserError(f"{self.path}:{self.line}: {message}")

    def text(self, key: str) -> str:
        """The string at `key`, encodable as UTF-8."""
        if key not in self.value:
            raise self.problem(f"no '{key}' in this row (keys: {', '.join(self.value) or 'none'}); name the right field in the task")
        return self.check_text(self.value[key], f"'{key}'")

    def texts(self, key: str) -> list[str]:
        """A list of strings at `key`."""
        value = self.value.get(key)
        if not isinstance(value, list) or not value:
            raise self.problem(f"'{key}' must be a list of strings, and not empty; mend or remove the row")
        return [self.check_text(item, f"'{key}[{index}]'") for index, item in enumerate(value)]

    def check_text(self, value: Any, where: str) -> str:
        """`value` if it is a string that UTF-8 can hold (JSON can write lone surrogates)."""
        if not isinstance(value, str):
            raise self.problem(f"{where} must be a string, not {type(value).__name__}; mend or remove the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.problem(f"{where} holds a lone surrogate, which is no Unicode text; mend or remove the row") from None
        return value

    def name(self, key: str | None) -> str:
        """The item's identity: the value of `key`, else of 'id', else the line number."""
        if key is not None and key not in self.value:
            raise self.problem(f"no '{key}' in this row; name the right id_field in the task")
        return self.check_text(str(self.value.get(key or "id", self.line)), f"'{key or 'id'}'")


class _BadRows:
    """The mistakes of a file's rows, which are told together."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.count = 0

    @contextmanager
    def note(self) -> Iterator[None]:
        """What a bad row raises in here is kept for later."""
        try:
            yield
        except UserError as error:
            self.count += 1
            if self.count <= MOST_TOLD:
                self.problems += error.problems

    def tell(self, path: Path) -> None:
        """Raises one UserError where there were any."""
        if self.count > MOST_TOLD:
            self.problems.append(f"{path}: {self.count - MOST_TOLD:,} more rows are bad; mend those above first")
        if self.problems:
            raise UserError(*self.problems)


def each(rows: Iterable[Row], make: Callable[[Row], Made]) -> list[Made]:
    """`make` of every row of one file. Raises one UserError that names all bad rows, up to MOST_TOLD of them."""
    found: list[Made] = []
    bad, path = _BadRows(), Path()
    for row in rows:
        path = row.path
        with bad.note():
            found.append(make(row))
    bad.tell(path)
    return found


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as raw:
        magic = raw.peek(4)[:4]
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as unpacked:
                yield unpacked  # type: ignore[misc]
        elif magic == b"\x28\xb5\x2f\xfd":
            if open_zstd is None:
                raise UserError(f"{path}: is zstd-compressed, and the package 'zstandard' is not installed; install it or unpack the file")
            yield open_zstd(raw)  # type: ignore[misc]
        else:
            yield raw


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` rows (all for None) of a jsonl file; blank lines are passed over.

    Raises UserError for a missing, unreadable, truncated or empty file, and for lines that are not
    UTF-8 JSON objects, with their numbers.
    """
    return read_each(path, lambda row: row, limit)


def read_each(path: Path, make: Callable[[Row], Made], limit: int | None = None) -> list[Made]:
    """`make` of every row of a jsonl file; lines that are no rows, and rows that `make` refuses, are told together. Else as `read_rows`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path of the task's data")
    found: list[Made] = []
    bad = _BadRows()
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, 1):
                if limit is not None and len(found) + bad.count == limit:
                    break
                if not line.isspace():
                    with bad.note():
                        found.append(make(Row(path, number, _parse(path, number, line))))
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); fetch or make it anew") from None
    bad.tell(path)
    if not found:
        raise UserError(f"{path}: is empty; a task needs at least one row")
    return found


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: is not UTF-8; mend or remove the line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number}: is not JSON ({error}); mend or remove the line") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}:{number}: is a JSON {type(value).__name__}, not an object; each line is one {{…}}")
    return value
