"""Benchmark files of every form give their items, or one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_prep.benchmarks import BenchmarkFile, benchmark_files, items
from data_prep.steps.decontaminate import benchmark_counts, prepare
from megatron_codemix.config import Decontaminate
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
        ("a.jsonl.gz", gzip.compress(b'{"a": "b"}' * 1000, mtime=0)[:-9]),
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


@pytest.mark.parametrize(
    "name, content, fields, message",
    [
        (
            "a.jsonl",
            '{"prompt": "x", "task": 1}\n',
            ["promptt"],
            r"fields: no row of \S+a.jsonl has a text in promptt; its rows have prompt, task;",
        ),
        ("a.json", '[{"a": {"prompt": "x"}}]', ["promptt"], "in promptt; its rows have a, prompt;"),
        ("a.jsonl", '{"prompt": "x", "n": 1}\n', ["n"], "has a text in n; its rows have prompt, n;"),
        ("a.jsonl", '{"prompt": "x"}\n', ["prompt", "test"], "no benchmark file has test; they have prompt;"),
        ("a.csv", "question,answer\nx,y\n", ["q"], r"a.csv .*none of the columns q of decontaminate.fields, but question, answer\)"),
        ("a.jsonl", "\n", [], "a.jsonl holds no item with a text"),
        ("a.json", '[{"n": 1}]', [], "a.json holds no item with a text"),
        ("a.jsonl", '"x"\n', ["prompt"], "a.jsonl holds no item with a text"),
        ("a.txt", "\n \n", ["prompt"], "a.txt holds no item with a text"),
    ],
)
def test_a_file_that_nothing_can_be_compared_with_is_refused(
    tmp_path: Path, name: str, content: str, fields: list[str], message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        prepare(Decontaminate(against=[tmp_path / name], fields=fields), tmp_path / "work")
    assert len(error.value.problems) == 1
    assert "\n" not in error.value.problems[0]
    assert not (tmp_path / "work" / "benchmarks").exists()


def test_files_may_differ_in_their_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "b.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "c.txt").write_text("x")
    prepare(Decontaminate(against=[tmp_path], fields=["prompt", "answer"]), tmp_path / "work")
    assert [file["items"] for file in benchmark_counts(tmp_path / "work")] == [1, 1, 1]


def test_what_cannot_be_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep.jsonl").write_text('{"q": ' + "[" * 1015 + '"a"' + "]" * 1015 + "}")
    with pytest.raises(UserError, match=r"deep.jsonl cannot be read \(maximum recursion depth"):
        read(tmp_path / "deep.jsonl")
    monkeypatch.setattr("data_prep.benchmarks._MOST_BYTES", 100)
    (tmp_path / "long.txt.gz").write_bytes(gzip.compress(b"a paragraph\n\n" * 10))
    with pytest.raises(UserError, match="unpacks to more than 100 bytes"):
        read(tmp_path / "long.txt.gz")


def test_links_to_folders_are_followed_and_other_kinds_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.dumps({"question": "How many apples does the farmer have after he gave eleven of them to his neighbours?"})
    (tmp_path / "there/inner").mkdir(parents=True)
    (tmp_path / "there/inner/a.jsonl").write_text(row)
    (tmp_path / "there/inner/back").symlink_to(tmp_path / "there")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/linked").symlink_to(tmp_path / "there")
    (tmp_path / "sets/b.parquet").write_bytes(b"PAR1")
    against = Decontaminate(against=[tmp_path / "sets"])
    assert [file.name for file in benchmark_files(against.against)] == ["linked/inner/a.jsonl"]
    prepare(against, tmp_path / "work")
    assert "1 files are of a kind that is not read, so not compared: " in capsys.readouterr().out
