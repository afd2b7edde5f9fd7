"""Damaged, foreign and hostile splits: one clear UserError each, and `verify_split` names every one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind, SplitReader, SplitWriter, mapping, verify_split
from megatron_codemix.shards.layout import npy_header

EOT = 2


@pytest.fixture
def split(tmp_path):
    folder = tmp_path / "split"
    with SplitWriter(
        folder,
        source="s",
        split="train",
        modality="code",
        token_dtype="uint16",
        tokenizer_fingerprint="ab" * 32,
        vocab_size=50,
        end_of_text_id=EOT,
        pack_tokens=16,
        shard_tokens=64,
        prep={},
    ) as writer:
        for number in range(40):
            body = [3 + (number + k) % 40 for k in range(3 + number % 5)]
            writer.add(np.array([*body, EOT]), 9, number, [(0, Kind.TEXT)] if number % 2 else None, "Python", "MIT")
    assert verify_split(folder) == []
    assert len(SplitReader(folder).manifest.shards) >= 3
    return folder


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def assert_one_problem(folder, *words, remedy="codemix prep"):
    """Opening and verifying both report exactly one line that holds `words` and the way out."""
    with pytest.raises(UserError) as caught:
        SplitReader(folder).read_all_sidecars()
    for problems in (caught.value.problems, verify_split(folder)):
        assert len(problems) == 1
        assert "\n" not in problems[0]
        assert all(word in problems[0] for word in [*words, remedy])


def test_truncated_shard(split):
    path = split / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-700])
    assert_one_problem(split, "shard-00001.tar", "truncated")


def test_shard_with_bytes_appended(split):
    with open(split / "shard-00001.tar", "ab") as handle:
        handle.write(b"x")
    assert_one_problem(split, "shard-00001.tar", "longer than written")


def test_missing_shard(split):
    (split / "shard-00002.tar").unlink()
    assert_one_problem(split, "shard-00002.tar", "missing")


def test_missing_sidecar(split):
    (split / "shard-00002.index.npy").unlink()
    assert_one_problem(split, "shard-00002.index.npy", "missing")


def test_swapped_sidecars(split):
    first, second = split / "shard-00000.index.npy", split / "shard-00001.index.npy"
    content = first.read_bytes()
    second_content = second.read_bytes()
    first.write_bytes(second_content)
    second.write_bytes(content)
    with pytest.raises(UserError) as caught:
        SplitReader(split).read_all_sidecars()
    assert [problem.split(":")[0] for problem in caught.value.problems] == [str(first), str(second)]
    assert all("another shard" in problem and "codemix prep" in problem for problem in caught.value.problems)
    assert len(verify_split(split)) == 2


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_foreign_format_version(split, version):
    edit_manifest(split, lambda values: values.update(format_version=version, created_by="codemix 9.1"))
    assert_one_problem(split, "manifest.json", "format_version")


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "shard-00000.tar\n", "..tar", "x.npy", ""])
def test_shard_names_cannot_lead_elsewhere(split, name):
    edit_manifest(split, lambda values: values["shards"][0].update(name=name))
    assert_one_problem(split, "manifest.json", "shards[0].name")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda values: values.update(num_tokens=values["num_tokens"] + 1), "num_tokens"),
        (lambda values: values.pop("vocab_size"), "vocab_size"),
        (lambda values: values.update(surprise=1), "surprise"),
        (lambda values: values.update(modality="music"), "modality"),
        (lambda values: values.update(end_of_text_id=50), "end_of_text_id"),
        (lambda values: values.update(vocab_size=70_000), "uint16"),
        (lambda values: values["shards"][0].update(sha256="0"), "sha256"),
        (lambda values: values["shards"][0].update(size=-1), "size"),
    ],
)
def test_manifest_that_cannot_be_right(split, change, word):
    edit_manifest(split, change)
    assert_one_problem(split, "manifest.json", word)


def test_a_shard_listed_twice(split):
    def change(values):
        values["shards"].append(values["shards"][0])
        for field in ("num_tokens", "num_documents", "num_bytes"):
            values[field] += values["shards"][0][field]

    edit_manifest(split, change)
    assert_one_problem(split, "listed 2 times")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_manifest_that_is_no_manifest(split, content):
    (split / "manifest.json").write_bytes(content)
    assert_one_problem(split, "manifest.json", remedy="make" if content != b"[]" else "docs")


def test_folder_that_is_no_split(tmp_path):
    assert_one_problem(tmp_path, "not a finished split")
    assert_one_problem(tmp_path / "nowhere", "not a finished split")


def forge_sidecar(folder, change):
    """Alter shard 0's sidecar and make the manifest's checksum agree with it."""
    path = folder / "shard-00000.index.npy"
    rows = np.load(path, allow_pickle=False)
    content = change(rows)
    content = npy_header(rows.dtype, rows.size) + rows.tobytes() if content is None else content
    path.write_bytes(content)
    edit_manifest(folder, lambda values: values["shards"][0].update(index_sha256=hashlib.sha256(content).hexdigest()))


def _set(name, value):
    def change(rows):
        rows[name][1] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("tokens_offset", 1 << 40), "its tokens lie outside"),
        (_set("num_tokens", (1 << 64) - 1), "its tokens lie outside"),
        (_set("documents_offset", (1 << 64) - 64), "its documents lie outside"),
        (_set("tokens_offset", 641), "not 64-byte aligned"),
        (_set("num_documents", 0), "a pack without documents"),
        (_set("num_tokens", 1), "num_tokens add up to"),
        (_set("num_documents", 1), "num_documents add up to"),
        (lambda rows: npy_header(rows.dtype, rows.size - 1) + rows[1:].tobytes(), "not an index of"),
        (lambda rows: npy_header(np.dtype("<u8"), 4) + bytes(32), "not an index of"),
        (lambda rows: b"", "not an index of"),
    ],
)
def test_sidecar_that_cannot_be_right(split, change, words):
    forge_sidecar(split, change)
    assert_one_problem(split, "shard-00000.index.npy", words)


def test_an_object_array_is_never_unpickled(split):
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    forge_sidecar(split, lambda rows: stream.getvalue())
    assert_one_problem(split, "shard-00000.index.npy", "not an index of")


def test_every_damaged_sidecar_is_reported_at_once_and_whole_shards_are_readable(split):
    for shard in (0, 1):
        (split / f"shard-0000{shard}.index.npy").write_bytes(b"x")
    reader = SplitReader(split)
    with pytest.raises(UserError) as caught:
        reader.read_all_sidecars()
    assert len(caught.value.problems) == 2
    last = reader.num_windows(1) - 1
    assert reader.read_windows([last], 1).shape == (1, 2)
    with pytest.raises(UserError, match="altered"):
        reader.read_windows([0], 1)


def test_every_problem_is_reported_at_once(split):
    (split / "shard-00000.tar").unlink()
    (split / "shard-00001.tar").unlink()
    with pytest.raises(UserError) as caught:
        SplitReader(split)
    assert len(caught.value.problems) == 2
    assert len(verify_split(split)) == 2


@pytest.mark.parametrize("content", [b"x" * 1024, None])
def test_a_shard_that_changes_after_opening_is_refused(split, content):
    reader = SplitReader(split)
    path = split / "shard-00001.tar"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001.tar: (changed|shard cannot be read).*codemix prep"):
        reader.read_windows(np.arange(reader.num_windows(4)), 4)


@pytest.mark.parametrize("change", ["a byte", "a longer file"])
def test_a_shard_that_is_written_to_while_it_is_read_is_refused(split, change, monkeypatch):
    monkeypatch.setattr(mapping, "LOOK_SECONDS", 0.0)
    reader = SplitReader(split)
    reader.read_windows(np.arange(reader.num_windows(4)), 4)
    with open(split / "shard-00001.tar", "r+b") as shard:
        shard.seek(0, os.SEEK_SET if change == "a byte" else os.SEEK_END)
        shard.write(b"x")
    os.utime(split / "shard-00001.tar")
    with pytest.raises(UserError, match=r"shard-00001.tar: was altered while it was read; .*codemix prep.* checkpoint before that"):
        reader.read_windows(np.arange(reader.num_windows(4)), 4)


def test_a_shard_is_looked_at_again_after_a_while_not_at_each_read(split, monkeypatch):
    looks = []
    monkeypatch.setattr(mapping.ShardFile, "require_unaltered", lambda file: looks.append(file.path))
    now = [0.0]
    monkeypatch.setattr(mapping.time, "monotonic", lambda: now[0])
    reader = SplitReader(split)
    windows = np.arange(reader.num_windows(4))
    for moment, expected in ((0.0, 0), (0.05, 0), (0.11, 1), (0.15, 1), (0.25, 2)):
        now[0] = moment
        reader.read_windows(windows, 4)
        assert sum(path.endswith("shard-00001.tar") for path in looks) == expected, moment


def test_a_shard_that_is_replaced_or_deleted_while_it_is_read_is_read_on(split):
    reader = SplitReader(split)
    before = reader.read_windows(np.arange(reader.num_windows(4)), 4)
    (split / "other").write_bytes(b"x" * 1024)
    os.replace(split / "other", split / "shard-00001.tar")
    (split / "shard-00000.tar").unlink()
    assert np.array_equal(reader.read_windows(np.arange(reader.num_windows(4)), 4), before)


def test_a_split_made_anew_in_the_same_place_is_read_anew(tmp_path):
    """Maps are shared between readers: an old one must not answer for a new file under the same name."""
    for token in (5, 6):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        with SplitWriter(
            tmp_path / "s",
            source="s",
            split="train",
            modality="code",
            token_dtype="uint16",
            tokenizer_fingerprint="ab" * 32,
            vocab_size=50,
            end_of_text_id=EOT,
            pack_tokens=16,
            shard_tokens=64,
            prep={},
        ) as writer:
            writer.add(np.array([token, token, EOT]), 2, 1)
        assert SplitReader(tmp_path / "s").read_windows([0], 2).tolist() == [[token, token, EOT]]
