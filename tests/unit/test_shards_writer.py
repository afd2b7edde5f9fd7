"""What the writer leaves on disk: deterministic bytes, whole shards or none, nothing overwritten."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.shards import (
    Kind,
    Manifest,
    ShardWriter,
    SplitReader,
    SplitWriter,
    begin_split,
    document_id,
    verify_split,
    write_manifest,
)

EOT = 2
FINGERPRINT = "ab" * 32


def write_split(folder, documents, *, pack_tokens=8, shard_tokens=30, token_dtype="uint16", vocab_size=50, modality="code") -> Manifest:
    """documents: (body tokens, segments, language)."""
    with SplitWriter(
        folder,
        source="s",
        split="train",
        modality=modality,
        token_dtype=token_dtype,
        tokenizer_fingerprint=FINGERPRINT,
        vocab_size=vocab_size,
        end_of_text_id=EOT,
        pack_tokens=pack_tokens,
        shard_tokens=shard_tokens,
        prep={"paths": ["a"]},
    ) as writer:
        for number, (body, segments, language) in enumerate(documents):
            tokens = np.array([*body, EOT])
            writer.add(tokens, 3 * len(body), document_id(f"d{number}"), segments, language)
    return Manifest.load(folder)


def naive_documents(count=40, seed=3):
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(3, 50, generator.integers(0, 12)).tolist(), [(0, Kind.TEXT)] if n % 3 else None, "en") for n in range(count)
    ]


def test_equal_documents_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_split(tmp_path / name, naive_documents())
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_the_bytes_of_format_version_1_have_not_changed(tmp_path):
    """A changed digest is a changed format: raise FORMAT_VERSION and teach the reader both."""
    documents = [([3 + (7 * n + k) % 40 for k in range(n % 11)], [(0, Kind.TEXT)] if n % 3 else None, "en") for n in range(40)]
    write_split(tmp_path / "s", documents)
    digest = hashlib.sha256((tmp_path / "s" / "shard-00000.tar").read_bytes()).hexdigest()
    assert digest == "c29215cc44b5c78fea275c00389856fbde04dc33ceeb5fb5b7c01c440453c60c"


def _write_one(folder, number, documents):
    with ShardWriter(folder, number, modality="code", token_dtype="uint16", vocab_size=50, end_of_text_id=EOT, pack_tokens=8) as writer:
        for body in documents:
            writer.add(np.array([*body, EOT], np.int32), 3 * len(body), document_id(str(body)))
    return writer.info


def test_shards_from_worker_processes_make_one_split(tmp_path):
    bodies = [[body for body, _, _ in naive_documents(20, seed)] for seed in range(3)]
    begin_split(tmp_path / "s")
    with ProcessPoolExecutor(2) as pool:
        infos = list(pool.map(_write_one, [tmp_path / "s"] * 3, range(3), bodies))
    manifest = write_manifest(
        tmp_path / "s",
        infos,
        source="s",
        split="train",
        modality="code",
        token_dtype="uint16",
        tokenizer_fingerprint=FINGERPRINT,
        vocab_size=50,
        end_of_text_id=EOT,
        prep={},
        skipped={"empty": 2},
    )
    assert verify_split(tmp_path / "s") == []
    assert [s.name for s in manifest.shards] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    assert manifest.skipped == {"empty": 2}
    read = [d.tokens.tolist() for d in SplitReader(tmp_path / "s").documents()]
    assert read == [[*body, EOT] for part in bodies for body in part]


@pytest.mark.parametrize(
    ("tokens", "segments", "message"),
    [
        ([5, 6], None, "end with 2"),
        ([], None, "end with 2"),
        ([5.0, 2.0], None, "integers"),
        ([5, 2, 6, 2], None, "occurs inside"),
        ([50, 2], None, "outside 0"),
        ([-1, 2], None, "outside 0"),
        ([5, 2], [(1, Kind.TEXT)], "start at 0"),
        ([5, 2], [(0, Kind.TEXT), (2, Kind.CODE)], "below the document's 2"),
        ([5, 2], [(0, 9)], "9 is not a valid Kind"),
    ],
)
def test_a_document_the_format_cannot_hold_is_refused(tmp_path, tokens, segments, message):
    with pytest.raises(ValueError, match=message):
        with ShardWriter(tmp_path, 0, modality="code", token_dtype="uint16", vocab_size=50, end_of_text_id=EOT, pack_tokens=8) as writer:
            writer.add(np.array([7, EOT]), 1, 1)
            writer.add(np.array(tokens), 1, 2, segments)
    assert list(tmp_path.iterdir()) == []


def test_the_callers_buffer_may_be_reused(tmp_path):
    buffer = np.array([7, EOT])
    with ShardWriter(tmp_path, 0, modality="code", token_dtype="uint16", vocab_size=50, end_of_text_id=EOT, pack_tokens=99) as writer:
        writer.add(buffer, 1, 1)
        buffer[0] = 8
        writer.add(buffer, 1, 2)
    assert writer.info.entry.num_tokens == 4
    assert b"\x07\x00\x02\x00\x08\x00\x02\x00" in (tmp_path / "shard-00000.tar").read_bytes()


def test_an_interrupted_split_is_not_a_split_and_can_be_made_again(tmp_path):
    folder = tmp_path / "s"
    with pytest.raises(RuntimeError, match="power cut"):
        with SplitWriter(
            folder,
            source="s",
            split="train",
            modality="code",
            token_dtype="uint16",
            tokenizer_fingerprint=FINGERPRINT,
            vocab_size=50,
            end_of_text_id=EOT,
            pack_tokens=4,
            shard_tokens=4,
            prep={},
        ) as writer:
            for n in range(3):
                writer.add(np.array([5, 6, 7, 8, EOT]), 1, n)
            writer.add(np.array([5, EOT]), 1, n)
            raise RuntimeError("power cut")
    (folder / ".shard-00003.tar.1-abcd.tmp").write_bytes(b"left by a killed process")
    with pytest.raises(UserError, match="not a finished split"):
        SplitReader(folder)
    write_split(folder, naive_documents(4))
    assert verify_split(folder) == []
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


def test_what_is_there_is_never_overwritten(tmp_path):
    write_split(tmp_path / "s", naive_documents(4))
    with pytest.raises(UserError, match="finished split already"):
        begin_split(tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shard-000.tar").write_bytes(b"somebody's data")
    with pytest.raises(UserError, match="no manifest"):
        begin_split(tmp_path / "other")
    assert (tmp_path / "other" / "shard-000.tar").read_bytes() == b"somebody's data"
