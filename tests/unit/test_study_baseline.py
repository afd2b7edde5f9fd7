"""The documents that the unigram baseline is scored on: read to their end, or refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from megatron_codemix.errors import UserError
from megatron_codemix.study.baseline import read_documents

LINES = b"".join(json.dumps({"text": f"text {number} ż"}).encode() + b"\n\n" for number in range(1000))


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_documents_of_every_compression(tmp_path: Path, name: str, pack) -> None:
    (tmp_path / name).write_bytes(pack(LINES))
    assert list(read_documents(tmp_path / name)) == [f"text {number} ż" for number in range(1000)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-9]),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-9]),
        ("a.jsonl.zst", LINES),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'),
        ("a.jsonl", b'{"text": 1}\n'),
        ("a.jsonl", b'{"text": "\\ud800"}\n'),
    ],
)
def test_bad_documents_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="prepare the file anew") as caught:
        list(read_documents(tmp_path / name))
    assert len(caught.value.problems) == 1
