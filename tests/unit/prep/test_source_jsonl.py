"""JSON lines in parts: every line once, names that do not depend on the parts, bad input told or counted, memory bounded."""

from __future__ import annotations

import gzip
import json
import os
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Tally
from data_prep.sources import inputs, lines, open_source
from data_prep.sources.lines import read_lines
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError


def spec(kind: str = "jsonl", **values) -> SourceSpec:
    return SourceSpec.model_validate({"kind": kind, "modality": "code", **values})


def read(source_spec: SourceSpec, tally: Tally | None = None, **settings) -> list[Document]:
    source = open_source("s", source_spec, **settings)
    assert source.inputs()
    return [document for chunk in source.chunks() for document in chunk.documents(tally or Tally())]


def packed(packing: str, content: bytes) -> bytes:
    return gzip.compress(content) if packing == ".gz" else zstandard.compress(content) if packing == ".zst" else content


def simple_lines(content: bytes, limit: int) -> list[tuple[int, bytes | None]]:
    """What `read_lines` should give of a whole file."""
    found, place = [], 0
    parts = content.split(b"\n")
    for part in parts[:-1] if not parts[-1] else parts:
        found.append((place, part if len(part) <= limit else None))
        place += len(part) + 1
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"", b"a", b"bcd", b"e" * 9, b"f" * 30]), max_size=8).map(b"\n".join),
    st.lists(st.integers(1, 60), max_size=4),
    st.integers(1, 12),
    st.sampled_from([3, 9, 10, 100]),
)
@example(b"\n\n\n", [1, 2, 3], 1, 3)
def test_parts_of_a_file_hold_every_line_once(content: bytes, cuts: list[int], block: int, limit: int) -> None:
    bounds = [0, *sorted(set(cuts)), len(content) + 1]
    found: list[tuple[int, bytes | None]] = []
    for start, end in pairwise(bounds):
        place = max(0, start - 1)

        def take(size: int) -> bytes:
            nonlocal place
            place += block
            return content[place - block : place]

        found += read_lines(take, start, end, limit)
    assert found == simple_lines(content, limit)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("target", [7, 100, 1234, 10**9])
def test_chunks_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str, target: int) -> None:
    monkeypatch.setattr(inputs, "chunk_bytes", lambda total: target)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 100)
    rows = [{"text": f"line {i} " + "é" * (i % 90)} for i in range(200)]
    contents = ["\r\n".join(map(json.dumps, part)).encode() for part in (rows[:120], rows[120:])]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.jsonl{packing}").write_bytes(packed(packing, content))
    moved: list[int] = []
    source = open_source("s", spec(paths=[tmp_path]))
    chunks = source.chunks()
    documents = [document for chunk in chunks for document in chunk.documents(Tally(), moved.append)]
    assert [document.text for document in documents] == [row["text"] for row in rows]
    for document in documents:
        number, _, place = document.name.partition(f".jsonl{packing}@")
        line = contents[int(number)][int(place) :].split(b"\n")[0]
        assert json.loads(line)["text"] == document.text
    assert sum(chunk.input_bytes for chunk in chunks) == sum(size for _, size in source.inputs())
    assert sum(moved) == sum(size for _, size in source.inputs())
    assert (len(chunks) > 1) == (target < 10**6)


def test_a_part_inside_of_a_long_line_is_left_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 100)
    content = b"x" * 20_000 + b"\nlast"
    taken = []

    def take(size: int) -> bytes:
        place = 999 + sum(taken)
        taken.append(size)
        return content[place : place + size]

    assert not list(read_lines(take, 1000, 2000, 10**6))
    assert sum(taken) == 1100


def test_errors_tell_the_line_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "chunk_bytes", lambda total: 64)
    good = json.dumps({"text": "x" * 20})
    (tmp_path / "a.jsonl").write_text("\n".join([good] * 50 + ["{"] + [good] * 50))
    with pytest.raises(UserError, match=r"a\.jsonl:51: not valid JSON"):
        read(spec(paths=[tmp_path]))


def test_rows_of_known_datasets(tmp_path: Path) -> None:
    def one(rows: str, row: dict, **values) -> Document:
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        [document] = read(spec(paths=[tmp_path], rows=rows, **values), with_fields=True)
        return document

    c4 = one("c4", {"text": "t", "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org"})
    assert (c4.text, c4.group, c4.fields["url"]) == ("t", None, "https://example.org")
    slim = {"text": "t", "meta": {"redpajama_set_name": "RedPajamaC4"}}
    assert one("slimpajama", slim, only={"meta.redpajama_set_name": ["RedPajamaC4"]}).text == "t"
    packed_meta = {"text": "t", "meta": json.dumps(slim["meta"])}
    assert one("slimpajama", packed_meta, language_field="meta.redpajama_set_name").language == "RedPajamaC4"
    pile = {"text": "t", "meta": {"repo_name": "a/b", "stars": "1", "repo_language": "Go", "file_name": "x.go", "mime_type": "text/plain"}}
    document = one("pile-github", pile)
    assert (document.group, document.path, document.language) == ("a/b", "x.go", "Go")
    assert one("pile-github", {"text": "t", "meta": {"pile_set_name": "Github"}}).group is None
    smol = {"content": "t", "licenses": ["MIT"], "repository_name": "a/b", "path": "x.c", "lang": "C", "size": 1}
    document = one("the-stack", smol)
    assert (document.group, document.path, document.language, document.license) == ("a/b", "x.c", "C", "MIT")
    assert one("the-stack", {"text": "t", "repo_name": "a/b"}, text_field="text", license_field="repo_name").license == "a/b"


def test_rows_that_are_rendered_may_lack_their_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": null, "title": "t"}\n{"title": "u"}\n{"body": "b"}\n')
    settings = {"paths": [tmp_path], "text_field": "body", "clean": {"render": {"form": "issue"}}}
    documents = read(spec(**settings), with_fields=True)
    assert [(document.text, document.fields.get("title")) for document in documents] == [("", "t"), ("", "u"), ("b", None)]
    with pytest.raises(UserError, match="field 'body' is null"):
        read(spec(**{**settings, "clean": {"render": {"form": "notebook"}}}))


def test_rows_that_make_no_document_are_counted(tmp_path: Path) -> None:
    rows = [
        b'{"text": 3}',
        b"[]",
        b"null",
        b'{"t": ""}',
        b'{"text": "\\ud800"}',
        b"\xff",
        b"\0\0\0",
        b'{"text": "n\\u0000"}',
        b"  ",
        b'{"text": ""}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows) + b'\n{"text": "' + b"x" * 200 + b'"}\n{"text": "good"}')
    tally = Tally()
    assert [document.text for document in read(spec(paths=[tmp_path], on_undecodable="skip", oversized_bytes=100), tally)] == ["", "good"]
    assert tally.skipped == {
        "field 'text' is not a string": 1,
        "not an object": 2,
        "no field 'text'": 1,
        "undecodable": 3,
        "holds NUL bytes": 1,
        "larger than oversized_bytes": 1,
    }


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["", ".gz", ".zst"]), st.booleans(), st.integers(1, 300))
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, packing: str, whole: bool, limit: int) -> None:
    """Whatever a file holds: its rows come out or are counted, or there is one line of error; nothing else ever."""
    folder = tmp_path_factory.mktemp("any")
    content = b'{"text": "first"}\n' + content
    (folder / f"a.jsonl{packing}").write_bytes(packed(packing, content) if whole else content)
    tally = Tally()
    try:
        documents = read(spec(paths=[folder], on_undecodable="skip", oversized_bytes=limit), tally)
    except UserError as error:
        told = error.problems
    else:
        told = ()
    if told:
        assert packing
        assert len(told) == 1
        return
    full = [line for line in content.split(b"\n") if line.strip()]
    assert len(documents) + tally.skipped.total() <= len(full)
    for line in full:
        if len(line) <= limit and line.startswith(b"{"):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row.get("text"), str) and "\0" not in row["text"]:
                assert row["text"] in {document.text for document in documents}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_in_files(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.py").write_bytes(content)
    tally = Tally()
    documents = read(spec("files", paths=[folder]), tally)
    assert len(documents) + tally.skipped.total() == 1
    assert all(document.text.encode() == content for document in documents)


@pytest.mark.parametrize("kind", ["jsonl", "files", "parquet", "webdataset"])
@pytest.mark.parametrize("change", ["vanished", "grown", "rewritten", "pipe"])
def test_a_file_that_changes_under_the_run(tmp_path: Path, kind: str, change: str) -> None:
    file = tmp_path / {"jsonl": "a.jsonl", "files": "a.py", "parquet": "a.parquet", "webdataset": "a.tar"}[kind]
    file.write_text('{"text": "x"}\n')
    source = open_source("s", spec(kind, paths=[tmp_path]))
    [chunk] = source.chunks()
    listed = chunk.input_stamp
    assert listed
    time = file.stat().st_mtime_ns
    file.unlink()
    if change == "rewritten":
        file.write_text('{"text": "y"}\n')
        os.utime(file, ns=(time, time + 1))
        [other] = open_source("s", spec(kind, paths=[tmp_path])).chunks()
        assert other.input_stamp != listed
    elif change == "grown":
        file.write_text('{"text": "x"}\n{"text": "y"}\n')
    elif change == "pipe":
        os.mkfifo(file)
    reason = "cannot be read .No such file" if change == "vanished" else "changed since the run began"
    with pytest.raises(UserError, match=rf"{file.name}: {reason}"):
        list(chunk.documents(Tally()))


@pytest.mark.parametrize("kind", ["jsonl", "files"])
def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')

    def refuse(*_) -> int:
        raise PermissionError(13, "Permission denied")

    source = open_source("s", spec(kind, paths=[tmp_path]))
    [chunk] = source.chunks()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        list(chunk.documents(Tally()))


def test_pipes_links_and_circles(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="neither a file nor a link to one"):
        read(spec(paths=[tmp_path]))
    with pytest.raises(UserError, match="not a regular file"):
        read(spec(paths=[tmp_path / "p.jsonl"]))
    (tmp_path / "p.jsonl").unlink()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    assert [document.name for document in read(spec(paths=[tmp_path / "data"]))] == ["linked/a.jsonl@0"]
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="links lead back to a folder above it"):
        read(spec(paths=[tmp_path / "data"]))
    (tmp_path / "real" / "circle").unlink()
    (tmp_path / "real" / "b.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"b\.jsonl: neither a file nor a link to one"):
        read(spec(paths=[tmp_path / "data"]))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset", "files", "git"])
def test_paths_that_cannot_be(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_text("")
    for path, reason in (("x" * 300, "cannot be looked at .File name too long."), ("none", "no such file or folder")):
        with pytest.raises(UserError, match=rf"sources\.s\.paths: .*: {reason}; check the path"):
            read(spec(kind, paths=[tmp_path / path]))


@pytest.mark.parametrize("name", ["b.jsonl", "b.other", "b"])
def test_links_to_themselves(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / name).symlink_to(name)
    (tmp_path / "c").symlink_to("d")
    (tmp_path / "d").symlink_to("c")
    tally = Tally()
    assert [document.text for document in read(spec("files", paths=[tmp_path]), tally)] == ['{"text": "x"}']
    assert tally.skipped == {"link, not followed": 3}
    if name == "b.jsonl":
        with pytest.raises(UserError, match=r"b\.jsonl: neither a file nor a link to one"):
            read(spec(paths=[tmp_path]))
        for kind in ("jsonl", "files"):
            with pytest.raises(UserError, match=r"b\.jsonl: "):
                read(spec(kind, paths=[tmp_path / name]))
    else:
        assert [document.text for document in read(spec(paths=[tmp_path]))] == ["x"]


def test_links_among_files_are_counted_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("secret = 1\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.py").write_text("a = 1\n")
    (tmp_path / "in" / "b.py").symlink_to(tmp_path / "secret.py")
    (tmp_path / "in" / "c").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "in" / "d.py")
    tally = Tally()
    assert [document.name for document in read(spec("files", paths=[tmp_path / "in"], suffixes=[".py"]), tally)] == ["a.py"]
    assert tally.skipped == {"link, not followed": 2, "neither a file nor a folder": 1}
