"""`verify_split` finds what opening does not look for: altered bytes, and contents that contradict themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile

import numpy as np
import pytest

from megatron_codemix.shards import Kind, SplitReader, SplitWriter, verify_split
from megatron_codemix.shards.layout import INDEX_DTYPE

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


@pytest.mark.parametrize("place", [0, 700, -1500])
def test_altered_byte_is_found_by_verify(split, place):
    path = split / "shard-00001.tar"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    problems = verify_split(split)
    assert len(problems) == 1
    assert "shard-00001.tar: altered" in problems[0]
    assert "codemix prep shards" in problems[0]


def forge_shard(folder, change):
    """Alter shard 0 (`change` gets its bytes and sidecar) and make the manifest's checksum agree with it."""
    path = folder / "shard-00000.tar"
    rows = np.load(folder / "shard-00000.index.npy", allow_pickle=False)
    content = bytearray(path.read_bytes())
    change(content, {name: int(rows[name][0]) for name in INDEX_DTYPE.names})
    path.write_bytes(content)
    edit_manifest(folder, lambda values: values["shards"][0].update(sha256=hashlib.sha256(content).hexdigest(), size=len(content)))


def put(field, index, content):
    def change(shard, row):
        start = row[field] + index
        shard[start : start + len(content)] = content

    return change


def u16(value):
    return value.to_bytes(2, "little")


def u64(value):
    return value.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("tokens_offset", 0, u16(EOT)), "end-of-text"),
        (put("tokens_offset", 6, u16(7)), "end-of-text"),
        (put("tokens_offset", 0, u16(50)), "not below vocab_size"),
        (put("documents_offset", 0, u64(1)), "documents do not cover"),
        (put("documents_offset", 24, u64(1 << 62)), "documents do not cover"),
        (put("documents_offset", 24, u64(5)), "end-of-text"),
        (put("documents_offset", 8, u64(10)), "num_bytes"),
        (put("segments_offset", 0, u64(1)), "segments do not cover"),
        (put("segments_offset", 8, b"\x09"), "kind 9"),
        (put("tokens_offset", -128, b"x"), "no valid header"),
        (put("tokens_offset", -128 - 512, b"x"), "no tar header at byte 0 (wrong header checksum)"),
        (lambda shard, row: shard.__setitem__(slice(len(shard) - 1024, None), b"y" * 1024), "no tar header"),
    ],
)
def test_contents_that_contradict_themselves_are_found_even_with_right_checksums(split, change, words):
    forge_shard(split, change)
    problems = verify_split(split)
    assert len(problems) == 1
    assert "shard-00000.tar" in problems[0]
    assert words in problems[0]
    assert "codemix prep shards" in problems[0]


def test_json_member_that_contradicts_the_arrays(split):
    def change(shard, row):
        at = shard.index(b'"num_documents": ') + len(b'"num_documents": ')
        shard[at : at + 1] = b"9"

    forge_shard(split, change)
    assert "contradicts its arrays in num_documents" in verify_split(split)[0]


def test_manifest_counts_that_differ_from_the_packs(split):
    edit_manifest(split, lambda values: values["languages"].update(Python=1))
    assert verify_split(split) == [f"{split}: languages in the manifest differ from those of the packs; make the split anew"]


def test_unlisted_shards_are_reported(split):
    shutil.copy(split / "shard-00000.tar", split / "shard-00077.tar")
    assert verify_split(split) == [f"{split / 'shard-00077.tar'}: not listed in the manifest; remove it"]


def test_verification_tells_its_progress(split):
    seen = []
    assert verify_split(split, seen.append) == []
    assert sum(seen) == sum(path.stat().st_size for path in split.glob("*.tar"))


def test_tar_members_are_plain_files_without_paths_or_times(split):
    """What `tar tvf` shows: nothing that an extraction could put elsewhere, nothing that varies."""
    for path in split.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.mode, member.uname, member.pax_headers) == (0, 0, 0, 0o644, "", {})
                assert "/" not in member.name
                assert member.name.startswith(f"{path.stem}-")
