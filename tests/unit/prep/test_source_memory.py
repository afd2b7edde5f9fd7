"""Readers in a process that may not have as much memory as their input: nothing of it is held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROGRAM = """
import sys
from data_prep.documents import Tally
from data_prep.sources import open_source
from megatron_codemix.config import SourceSpec
kind, path, limit = sys.argv[1:]
where = {"dataset": {"name": path}} if kind == "huggingface" else {"paths": [path]}
source = open_source("s", SourceSpec.model_validate({"kind": kind, "modality": "code", **where}))
def most_memory():
    # of this program: what getrusage tells is never less than what the process that started it had
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))  # KiB
source.inputs()
before = most_memory()
tally = Tally()
lengths = [len(document.text) for chunk in source.chunks() for document in chunk.documents(tally)]
print(len(lengths), sum(lengths), dict(tally.skipped))
used = (most_memory() - before) >> 10
assert used < int(limit), f"{used} MiB"
"""
OVERSIZED = "{'larger than oversized_bytes': 1}"


def run(kind: str, path: Path, limit: int) -> str:
    """What the program prints: documents, their characters, what was counted. limit: MiB that reading may take."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, kind, str(path), str(limit)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_long_line(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "wb") as handle:
        handle.write(b'{"text": "small"}\n{"text": "')
        handle.seek(450_000_000, os.SEEK_CUR)  # a hole: NULs
        handle.write(b'"}\n{"text": "last"}\n')
    assert run("jsonl", tmp_path / "a.jsonl", 150) == f"2 9 {OVERSIZED}"


def test_a_large_file(tmp_path: Path) -> None:
    with open(tmp_path / "a.py", "wb") as handle:
        handle.truncate(450_000_000)
    (tmp_path / "b.py").write_text("b = 1\n")
    assert run("files", tmp_path, 50) == f"1 6 {OVERSIZED}"


@pytest.mark.parametrize("kind", ["parquet", "huggingface"])
@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}])
def test_rows_that_repeat_one_large_value(tmp_path: Path, kind: str, settings: dict) -> None:
    """Parquet holds it once: in a dictionary, or as what rows have in common with the one before. Twice as much as may be taken."""
    pq.write_table(pa.table({"text": ["x" * 4_000_000] * 110}), tmp_path / "a.parquet", **settings)
    assert (tmp_path / "a.parquet").stat().st_size < 5_000_000
    assert run(kind, tmp_path if kind == "huggingface" else tmp_path / "a.parquet", 200) == "110 440000000 {}"


@pytest.mark.parametrize(("kind", "size"), [("parquet", 1_000), ("parquet", 1_000_000), ("huggingface", 10_000)])
def test_a_large_row_group(tmp_path: Path, kind: str, size: int) -> None:
    count = 150_000_000 // size
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, use_dictionary=False, write_batch_size=16, compression="none") as writer:
        batch = pa.table({"text": [chr(97 + i % 26) * size for i in range(count)]}, schema)
        writer.write_table(batch, row_group_size=count)
    assert run(kind, tmp_path if kind == "huggingface" else tmp_path / "a.parquet", 110) == f"{count} {count * size} {{}}"
