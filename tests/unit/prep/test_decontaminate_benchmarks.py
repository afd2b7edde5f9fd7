"""Benchmark files of every form give their items, or one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_prep.benchmarks import BenchmarkFile, benchmark_files, items
from megatron_codemix.errors import UserError


def read(path: Path, *fields: str) -> list[tuple[list[str], int]]:
    return [tuple(item) for item in items(BenchmarkFile(path.name, path, ""), fields)]


def test_rows_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = [{"choices": ["x", "y"], "query": "what is it", "n": 1, "more": {"deep": "down"}}, "plain", ["a", "b"], None]
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    assert read(path) == [(["what is it", "x", "y", "down"], 1), (["plain"], 1), (["a", "b"], 0), ([], 0)]
    assert read(path, "choices", "deep")[0] == (["x", "y", "down"], 0)
    assert read(path, "query")[0] == (["what is it"], 1)


def test_json_lists_and_tasks(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"q": "one"}, {"q": "two"}]))
    assert read(path) == [(["one"], 1), (["two"], 1)]
    path.write_text(json.dumps({"name": "task", "tags": ["t"], "examples": [{"input": "in", "target_scores": {"pour it": 1, "x": 0}}]}))
    assert read(path) == [(["task", "t"], 1), (["in", "pour it"], 1)]


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"what, really",nothing\n')
    assert read(path) == [(["question", "answer"], 2), (["what, really", "nothing"], 2)]
    assert read(path, "answer") == [(["nothing"], 1)]
    with pytest.raises(UserError, match="none of the columns other"):
        read(path, "other")
    path = tmp_path / "a.tsv"
    path.write_text('he said "no\tanswer\n')
    assert read(path) == [(['he said "no', "answer"], 2)]


def test_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\none\ntwo\n \nthree")
    assert read(path) == [(["one\ntwo"], 1), (["three"], 1)]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", b'{"a": 1}\n{"b":\n'),
        ("a.json", b"{"),
        ("a.txt", b"\xff\xfe\x00"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "b"}' * 1000)[:-9]),
        ("a.jsonl.gz", b"no gzip"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read .*; mend it, or take it out") as error:
        read(path)
    assert len(error.value.problems) == 1


def test_a_folder_and_a_file_of_the_same_name_keep_their_names_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text("")
    found = benchmark_files([tmp_path / "one", tmp_path / "two" / "test.jsonl"])
    assert [file.name for file in found] == ["one/test.jsonl", "two/test.jsonl"]
