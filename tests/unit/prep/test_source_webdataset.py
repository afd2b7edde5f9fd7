"""Tars: samples as webdataset groups them, read without extracting anything."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Tally
from data_prep.sources import open_source
from data_prep.sources.tar import DamagedTar, members
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import UserError


def spec(**values) -> SourceSpec:
    return SourceSpec.model_validate({"kind": "webdataset", "modality": "code", **values})


def read(source_spec: SourceSpec, tally: Tally | None = None) -> list[Document]:
    source = open_source("s", source_spec)
    assert source.inputs()
    return [document for chunk in source.chunks() for document in chunk.documents(tally or Tally())]


def tar(entries: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_reads_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"f/{i:03d}", "txt": f"text {i}", "json": {"repo": f"r{i}", "lang": "C"}, "png": b"\xff"})
    documents = read(spec(paths=[tmp_path], group_field="repo", language_field="lang"))
    assert documents == [Document(f"a.tar:f/{i:03d}", f"text {i}", f"r{i}", "C") for i in range(5)]
    stock = [sample["__key__"] for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    assert [f"a.tar:{key}" for key in stock] == [document.name for document in documents]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_text_in_json_members_of_any_form_of_tar(tmp_path: Path, form: int, packing: str) -> None:
    rows = {f"{'d' * 90}/{'n' * 60}{i}": {"body": f"é {i}", "id": i} for i in range(3)}
    content = tar([(f"{key}.json", json.dumps(row).encode()) for key, row in rows.items()], form)
    content = gzip.compress(content) if packing == ".gz" else zstandard.compress(content) if packing else content
    (tmp_path / f"a.tar{packing}").write_bytes(content)
    documents = read(spec(paths=[tmp_path], text_field="json:body", id_field="id"))
    assert [(document.name, document.text) for document in documents] == [(str(i), f"é {i}") for i in range(3)]


def test_a_suffix_with_dots(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("k.out.txt", b"wrong"), ("k.txt", b"right"), ("no-suffix", b"?"), (".hidden", b"?")]))
    assert [document.text for document in read(spec(paths=[tmp_path]))] == ["right"]
    assert [document.text for document in read(spec(paths=[tmp_path], text_field="out.txt"))] == ["wrong"]


def test_links_and_outside_names_lead_nowhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.FIFOTYPE), ("d.txt", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("../../evil.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(buffer.getvalue())
    assert [(document.name, document.text) for document in read(spec(paths=[tmp_path / "in"]))] == [("a.tar:../../evil", "text")]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in"]


@pytest.mark.parametrize("lost", [1, 600, 1024, 1536, 2000])
def test_cut_off_tars(tmp_path: Path, lost: int) -> None:
    whole = tar([("a.txt", b"x" * 700), ("b.txt", b"y" * 10)])
    content = whole[: 512 + 1024 + 512 + 512]  # without the closing blocks
    for cut in (content, content[: len(content) - lost]):
        (tmp_path / "a.tar").write_bytes(cut)
        with pytest.raises(UserError, match=r"a\.tar: cannot be read as a tar \(it ends .*fetch the file again"):
            read(spec(paths=[tmp_path]))


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_tars_joined_end_to_end(tmp_path: Path, packing: str) -> None:
    first, second = (tar([(f"{name}.txt", name.encode())]) for name in "ab")
    one = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    for content in (one(first) + one(second), one(first + b"x"), one(first + bytes(3 << 20) + second)):
        (tmp_path / f"a.tar{packing}").write_bytes(content)
        with pytest.raises(UserError, match=r"goes on behind its closing blocks, .*; give each tar by itself"):
            read(spec(paths=[tmp_path]))
    (tmp_path / f"a.tar{packing}").write_bytes(one(first + bytes(3 << 20)))
    assert [document.text for document in read(spec(paths=[tmp_path]))] == ["a"]


def test_members_that_make_no_document_are_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in (("a.txt", tarfile.LNKTYPE), ("a.png", tarfile.SYMTYPE), ("b.json", tarfile.FIFOTYPE), ("c", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x.txt"
            archive.addfile(info)
        for name, headers in (
            ("x.txt", {}),
            ("README", {}),
            ("s", {"GNU.sparse.major": "1", "GNU.sparse.name": "s.txt"}),
            ("t.txt", {"GNU.sparse.map": "0,4"}),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 4, headers
            archive.addfile(info, io.BytesIO(b"text"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    tally = Tally()
    assert [(document.name, document.text) for document in read(spec(paths=[tmp_path]), tally)] == [("a.tar:x", "text")]
    assert tally.skipped == {"link, device or sparse file in a tar": 4, "file without a suffix in a tar": 1}


def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path) -> None:
    """Their content is a map and the parts that are no holes: not the file, which is counted; what follows is read all the same."""
    with open(tmp_path / "holes.txt", "wb") as file:
        for number in range(40):  # more parts than a header holds
            file.seek(number * 65536)
            file.write(b"part")
    (tmp_path / "z.txt").write_text("text")
    for form in ("gnu", "posix"):
        command = ["tar", "--sparse", f"--format={form}", "-cf", tmp_path / "in.tar", "-C", tmp_path, "holes.txt", "z.txt"]
        if shutil.which("tar") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no GNU tar")
        tally = Tally()
        assert [document.text for document in read(spec(paths=[tmp_path / "in.tar"]), tally)] == ["text"]
        assert tally.skipped == {"link, device or sparse file in a tar": 1}


def test_links_with_a_size_have_no_content(tmp_path: Path) -> None:
    blocks = b""
    for name, kind in (("a.txt", tarfile.LNKTYPE), ("b.txt", tarfile.SYMTYPE), ("c.txt", tarfile.CHRTYPE), ("d.txt", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, 700, "x.txt"
        blocks += info.tobuf()
    (tmp_path / "a.tar").write_bytes(blocks + tar([("x.txt", b"text")]))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert len(archive.getmembers()) == 5
    assert [document.text for document in read(spec(paths=[tmp_path]))] == ["text"]


@pytest.mark.parametrize(
    "record",
    [b"9" * 5000 + b" size=1\n", b"5015 size=" + b"9" * 5004 + b"\n", "14 size=\u0663\u0663\n".encode(), b"0 a=b\n", b"\xb2 a=b\n"],
)
def test_impossible_numbers_in_extended_headers(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    content = info.tobuf() + record + bytes(-len(record) % 512) + tar([("x.txt", b"text")])
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: cannot be read as a tar \(it has a damaged extended header\); fetch the file again"):
        read(spec(paths=[tmp_path]))


def test_names_that_are_no_unicode_stay_apart(tmp_path: Path) -> None:
    names = [b"\xff.txt", b"\\xff.txt", b"d/\xff\\xfe.txt", b"d/\xff\xfe.txt", b"//\\xff.txt", b"//d.txt", b"d.txt"]
    (tmp_path / "a.tar").write_bytes(tar([(os.fsdecode(name), b"text") for name in names]))
    found = [document.name for document in read(spec(paths=[tmp_path]))]
    assert len(found) == len(set(found)) == len(names)
    assert "a.tar:d" in found


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_cut_off_packing(tmp_path: Path, packing: str) -> None:
    content = tar([(f"{i}.txt", bytes(range(97, 120)) * i) for i in range(50)])
    content = gzip.compress(content) if packing == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(content)
    (tmp_path / f"a.tar{packing}").write_bytes(content[:-2])
    with pytest.raises(UserError, match="cannot be decompressed"):
        read(spec(paths=[tmp_path]))


def test_bad_samples(tmp_path: Path) -> None:
    entries = [("a.txt", b"\xff"), ("b.json", b"{}"), ("c.txt", b"n\0"), ("d.txt", b"x" * 101), ("e.txt", b"fine")]
    (tmp_path / "a.tar").write_bytes(tar(entries))
    with pytest.raises(UserError, match=r"a\.tar: sample a: not valid UTF-8 or JSON"):
        read(spec(paths=[tmp_path]))
    tally = Tally()
    documents = read(spec(paths=[tmp_path], on_undecodable="skip", oversized_bytes=100), tally)
    assert [document.text for document in documents] == ["fine"]
    assert tally.skipped == {"undecodable": 1, "no member .txt": 1, "holds NUL bytes": 1, "larger than oversized_bytes": 1}


def test_a_repeated_member_and_a_huge_header(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("a.txt", b"1"), ("a.txt", b"2")]))
    with pytest.raises(UserError, match=r"two members a\.txt"):
        read(spec(paths=[tmp_path]))
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 31
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UserError, match="an extended header of 2,147,483,648 bytes"):
        read(spec(paths=[tmp_path]))
    record = b"600000 k=" + b"x" * 599_990 + b"\n"
    info.size = len(record)
    (tmp_path / "a.tar").write_bytes(2 * (info.tobuf(tarfile.GNU_FORMAT) + record + bytes(-len(record) % 512)) + bytes(1024))
    with pytest.raises(UserError, match="an extended header of 1,200,000 bytes"):
        read(spec(paths=[tmp_path]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab/é.", min_size=1, max_size=150), st.binary(max_size=1500)), max_size=6), st.sampled_from([0, 1, 2]))
def test_members_are_those_of_tarfile(entries: list[tuple[str, bytes]], form: int) -> None:
    try:
        content = tar(entries, form)
    except ValueError:
        return  # a name that this form cannot hold
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(info.name.rstrip("/"), archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    found = [(member.name.rstrip("/"), member.read()) for member in members(io.BytesIO(content))]
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_arbitrary_bytes_are_a_damaged_tar(data: st.DataObject) -> None:
    whole = bytearray(tar([("a.txt", b"x" * 600), ("b.json", b"{}")], data.draw(st.sampled_from([0, 1, 2]))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        names = [member.name for member in members(io.BytesIO(bytes(whole)))]
    except DamagedTar:
        names = []
    assert len(names) <= 3
