"""Atomic files and folders: whole or absent, whatever interrupts."""

import json
import os

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory, atomic_file, read_json, sha256_file, sha256_json, write_json, write_text


def test_a_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "folder" / "a.bin"
    with atomic_file(target) as handle:
        handle.write(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert os.listdir(target.parent) == ["a.bin"]


def test_an_exception_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_file(target) as handle:
        handle.write(b"new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "step-1"
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_directory(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("x")
        assert not target.exists()
    assert (target / "deep" / "x").read_text() == "x"
    with pytest.raises(FileExistsError), atomic_directory(target):
        pass


def test_json_round_trip_and_refusals(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "é"]})
    assert read_json(tmp_path / "a.json", "thing") == {"b": [1, 2.5, "é"]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "nan.json", {"x": float("nan")})
    assert not (tmp_path / "nan.json").exists()
    with pytest.raises(UserError, match="this manifest does not exist"):
        read_json(tmp_path / "none.json", "manifest")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "cut.json", "manifest")


def test_checksums(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": 1, "a": 2}) == sha256_json(json.loads('{"a": 2, "b": 1}'))


def test_what_a_killed_process_left_of_a_folder_goes_and_what_lives_stays(tmp_path):
    """A folder being written is locked; the lock of a killed process is gone."""
    dead, other = tmp_path / ".out.123-0123abcd.tmp", tmp_path / ".out.more.123-0123abcd.tmp"
    for folder in (dead, other):
        folder.mkdir()
        (folder / "weights").write_bytes(b"half")
    with atomic_directory(tmp_path / "out") as living:
        assert not dead.exists() and other.exists()
        with atomic_directory(tmp_path / "out") as second:
            assert living.exists() and second != living
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out"]
