"""Sources: every kind's documents, and a line for every kind of bad input."""

from __future__ import annotations

import ast
import gzip
import json
import os
from importlib import metadata
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from data_prep.documents import Document, Tally, is_held_out, text_hash
from data_prep.sources import open_source
from data_prep.sources.stdlib import StdlibSource
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError


def spec(kind: str, **values) -> SourceSpec:
    return SourceSpec.model_validate({"kind": kind, "modality": "code", **values})


def read(source_spec: SourceSpec, tally: Tally | None = None) -> list[Document]:
    source = open_source("s", source_spec)
    source.inputs()
    return [document for chunk in source.chunks() for document in chunk.documents(tally or Tally())]


ROWS = [{"text": f"text {i}\n", "id": f"n{i}", "repo": f"r{i % 2}", "lang": "python", "lic": None} for i in range(5)]


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if name.endswith(".zst") else content


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(packed(name, "\n".join(map(json.dumps, ROWS)).encode()))
    fields = {"id_field": "id", "group_field": "repo", "language_field": "lang", "license_field": "lic"}
    expected = [Document(f"{row['repo']}/{row['id']}", row["text"], row["repo"], "python", None) for row in ROWS]
    assert read(spec("jsonl", paths=[tmp_path], **fields)) == expected
    assert [document.name for document in read(spec("jsonl", paths=[tmp_path / name]))] == [
        f"{name}@{sum(len(json.dumps(row)) + 1 for row in ROWS[:i])}" for i in range(5)
    ]


def test_jsonl_long_lines_cross_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.lines._BLOCK_BYTES", 7)
    rows = [{"text": "x" * n} for n in (1, 100, 3, 50)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    documents = read(spec("jsonl", paths=[tmp_path]))
    assert [document.text for document in documents] == [row["text"] for row in rows]
    places = [(tmp_path / "a.jsonl").read_bytes().index(json.dumps(row).encode()) for row in rows]
    assert [document.name for document in documents] == [f"a.jsonl@{place}" for place in places]


def test_equal_file_names_stay_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text('{"text": "t"}\n')
    names = [document.name for document in read(spec("jsonl", paths=[tmp_path / "x", tmp_path / "y"]))]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', {}, r"a\.jsonl:2: not valid JSON.*on_undecodable"),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', {}, r"a\.jsonl:3: not valid JSON in UTF-8"),
        (b'{"text": "\\ud800"}\n', {}, r"a\.jsonl:1: not valid JSON"),
        (b'{"body": "a"}\n', {}, r"a\.jsonl:1: no field 'text' \(it has 'body'\); set sources\.s\.text_field"),
        (b'{"text": 3}\n', {}, r"a\.jsonl:1: field 'text' is int"),
        (b"[1]\n", {}, r"a\.jsonl:1: a row must be an object"),
        (b'{"text": "a"}\n', {"group_field": "repo"}, r"no field 'repo'.*group_field"),
        (b'{"text": "a"}\n', {"id_field": "path"}, r"no field 'path'.*id_field"),
    ],
)
def test_jsonl_bad_lines(tmp_path: Path, content: bytes, settings: dict, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(spec("jsonl", paths=[tmp_path / "a.jsonl"], **settings))
    assert len(caught.value.problems) == 1


def test_jsonl_skip_undecodable(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n')
    tally = Tally()
    assert len(read(spec("jsonl", paths=[tmp_path], on_undecodable="skip"), tally)) == 2
    assert tally.skipped == {"undecodable": 1}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_damaged_compression(tmp_path: Path, name: str) -> None:
    whole = packed(name, b'{"text": "abcdefgh"}\n' * 1000)
    (tmp_path / name).write_bytes(b"XX" + whole[2:])
    with pytest.raises(UserError, match="cannot be decompressed"):
        read(spec("jsonl", paths=[tmp_path]))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("lost", [3, 20, 10_000])
def test_truncated_compression(tmp_path: Path, name: str, lost: int) -> None:
    whole = packed(name, b'{"text": "abcdefgh"}\n' * 1000)
    (tmp_path / name).write_bytes(whole[: max(0, len(whole) - lost)])
    with pytest.raises(UserError, match="cannot be decompressed"):
        read(spec("jsonl", paths=[tmp_path]))


@pytest.mark.parametrize("kind", ["jsonl", "files"])
def test_a_file_named_twice_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(UserError, match=r"sources\.s\.paths: .*x\.jsonl is named twice"):
        read(spec(kind, paths=[tmp_path, tmp_path / "a"]))


def test_names_do_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    for place in ("here/x", "here/y", "there/x", "there/y"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.jsonl").write_text('{"text": "t"}\n')
    names = [
        [document.name for document in read(spec("jsonl", paths=[tmp_path / place / "x", tmp_path / place / "y"]))]
        for place in ("here", "there")
    ]
    assert names == [["x/a.jsonl@0", "y/a.jsonl@0"]] * 2


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.py")).write_text("x = 1\n")
    except OSError:
        pytest.skip("this file system takes no such name")
    source = open_source("s", spec("files", paths=[tmp_path]))
    assert [name for name, _ in source.inputs()] == ["//\\xff.py"]
    assert [document.name for document in read(spec("files", paths=[tmp_path]))] == ["//\\xff.py"]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.py").write_text("x = 1\n")
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe")
    assert [(d.name, d.text) for d in read(spec("files", paths=[tmp_path], suffixes=[".py"]))] == [
        ("a.py", "a = 1\n"),
        ("b/x.py", "x = 1\n"),
    ]
    tally = Tally()
    assert len(read(spec("files", paths=[tmp_path]), tally)) == 2
    assert tally.skipped == {"undecodable": 1}


def test_files_bad_input(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_bytes(b"x = 1\ny = '\xff'\n")
    with pytest.raises(UserError, match=r"bad\.py:2: not valid UTF-8"):
        read(spec("files", paths=[tmp_path], suffixes=[".py"]))
    with pytest.raises(UserError, match=r"no file that ends in \.rs"):
        read(spec("files", paths=[tmp_path], suffixes=[".rs"]))


@pytest.mark.parametrize("kind", ["jsonl", "files"])
def test_missing_paths(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"sources\.s\.paths.*no such file or folder"):
        read(spec(kind, paths=[tmp_path / "nowhere"]))
    with pytest.raises(UserError, match=r"sources\.s\.paths"):
        read(spec(kind, paths=[tmp_path]))


def test_standard_library_halves_share_groups_and_leave_tests_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [metadata.distribution(name) for name in ("hypothesis", "pytest")]
    monkeypatch.setattr("data_prep.sources.stdlib.metadata.distributions", lambda: installed)
    code = StdlibSource("c", spec("stdlib", part="code"))._items
    text = StdlibSource("t", spec("stdlib", part="text", modality="text"))._items
    names = [item.file.name for item in code]
    assert any(name == "stdlib/email/message.py" for name in names)
    left_out = ("/test/", "/tests/", "pydoc_data", "site-packages", "idle_test")
    assert not [name for name in names if any(part in f"/{name}" for part in left_out)]
    assert {item.group for item in code if "/email/" in item.file.name} == {"module:email"}
    assert {item.group for item in text if item.file.name.startswith("stdlib/email/")} == {"module:email"}
    roles = {item.role for item in text}
    assert {"docstrings", "description"} <= roles
    assert {item.group for item in text if item.role == "description"} == {"distribution:hypothesis", "distribution:pytest"}


def test_standard_library_documents() -> None:
    chunk = StdlibSource("c", spec("stdlib", part="code")).chunks()[0]
    documents = list(islice(chunk.documents(Tally()), 40))
    assert len(documents) == 40
    assert not any(ast.get_docstring(ast.parse(document.text)) for document in documents)
    for document in documents:
        compile(document.text, document.name, "exec", dont_inherit=True)


def test_hashes() -> None:
    assert text_hash(b"a b\n\tc") == text_hash(b"ab c ")
    assert text_hash(b"ab") != text_hash(b"ba")
    held = [is_held_out(f"g{i}", 0, 0.1) for i in range(5000)]
    assert 400 < sum(held) < 600
    assert held == [is_held_out(f"g{i}", 0, 0.1) for i in range(5000)]
    assert held != [is_held_out(f"g{i}", 1, 0.1) for i in range(5000)]
    assert not any(is_held_out(f"g{i}", 0, 0.0) for i in range(100))
