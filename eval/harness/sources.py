"""Rows of a standard task from a file of the user's: jsonl (packed or not), a JSON list, or parquet as the hub stores it."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.harness.schemas import HUB, REBUILT, RENDERED, SCHEMAS, Schema, check_rendered, check_row
from eval.rows import Row, each, read_rows
from megatron_codemix.errors import UserError

try:
    import pyarrow
    import pyarrow.parquet as parquet
except ImportError:  # comes with `datasets`; without it jsonl and JSON still work
    pyarrow = parquet = None


@dataclass(frozen=True)
class Rows:
    """The rows of one file, in a form that a definition can read."""

    values: list[dict[str, Any]]
    ids: list[str]
    """The value of 'id' where a row has one, else its place in the file."""
    schema: str
    """HUB, REBUILT or RENDERED of `schemas`."""


def read_any(path: Path, limit: int | None = None) -> list[Row]:
    """The first rows of a file, whichever of the three forms it has. Raises UserError for a missing, damaged or empty one."""
    name = path.name.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path of the task's data")
    if name.endswith(".parquet"):
        return _parquet(path, limit)
    if name.endswith((".json", ".json.gz")):
        return _json(path, limit)
    return read_rows(path, limit)


def _parquet(path: Path, limit: int | None) -> list[Row]:
    if parquet is None or pyarrow is None:
        raise UserError(f"{path}: reading parquet needs pyarrow, which is not installed; pip install pyarrow, or give jsonl")
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: is no whole parquet file ({' '.join(str(error).split())[:160]}); fetch it anew") from None
    rows = [Row(path, number, value) for number, value in enumerate((table if limit is None else table.slice(0, limit)).to_pylist(), 1)]
    if not rows:
        raise UserError(f"{path}: is empty; a task needs at least one row")
    return rows


def read_json_value(path: Path) -> Any:
    """The value of a JSON file, gzip-packed or not. Raises UserError for a missing or damaged one."""
    try:
        content = path.read_bytes()
        return json.loads((gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path of the task's data") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no whole JSON file ({' '.join(str(error).split())[:160]}); fetch or make it anew") from None


def _json(path: Path, limit: int | None) -> list[Row]:
    value = read_json_value(path)
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path}: is not a JSON list of objects; give the rows as such a list, as jsonl or as parquet")
    return [Row(path, number, row) for number, row in enumerate(value[:limit], 1)]


def load_rows(path: Path, name: str, limit: int | None = None, wanted: str = "auto") -> Rows:
    """The rows of the catalogue's task `name`, checked. wanted: auto, hub or rendered (`StandardTask.rows`).

    Rows that hold all of the hub's columns are taken as they are; llm-foundry's are written back as hub rows where that loses
    nothing, else scored as rendered. Raises UserError for rows that are neither, with their places.
    """
    return _load(path, name, limit, wanted, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=64)
def _load(path: Path, name: str, limit: int | None, wanted: str, _changed: int) -> Rows:
    rows = read_any(path, limit)
    ids = [row.name(None) for row in rows]
    schema = SCHEMAS.get(name)
    if wanted == "rendered" or (schema is not None and wanted == "auto" and not _has_columns(rows[0], schema)):
        return _foundry(rows, ids, schema if wanted == "auto" else None)
    if schema is not None:
        each(rows, lambda row: check_row(row, schema))
    return Rows([row.value for row in rows], ids, HUB)


def _has_columns(row: Row, schema: Schema) -> bool:
    """Whether a row is the hub's rather than llm-foundry's: told by the first row, so that one bad row does not change the kind of all."""
    rendered = any(set(keys) <= set(row.value) for keys in _FOUNDRY)
    mine = {key.split(".")[0] for key in schema.columns}
    return mine <= set(row.value) or not rendered


_FOUNDRY = (("query", "choices", "gold"), ("context_options", "continuation"), ("context", "continuation"), ("context", "answer"))
"""Keys of llm-foundry's kinds of row."""


def _foundry(rows: list[Row], ids: list[str], schema: Schema | None) -> Rows:
    if schema is None or schema.rebuild is None:
        each(rows, check_rendered)
        return Rows([{key: row.value[key] for key in ("query", "choices", "gold")} for row in rows], ids, RENDERED)
    rebuild = schema.rebuild

    def rebuilt(row: Row) -> dict[str, Any]:
        value = rebuild(row)
        check_row(Row(row.path, row.line, value), schema)
        return value

    return Rows(each(rows, rebuilt), ids, REBUILT)
