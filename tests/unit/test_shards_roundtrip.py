"""Write → read, against a naive in-memory model of the format."""

from __future__ import annotations

import pickle
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.shards import (
    Kind,
    Manifest,
    SplitReader,
    SplitWriter,
    document_id,
    mapping,
    verify_split,
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


def expected_shards(documents, pack_tokens, shard_tokens):
    """Per shard: tokens, document starts, kind of each token (None: the source's)."""
    shards, current = [], None
    for body, segments, _ in documents:
        current = current or ([], [], [])
        tokens, starts, kinds = current
        starts.append(len(tokens))
        tokens += [*body, EOT]
        size = len(body) + 1
        bounds = [*[s for s, _ in segments], size] if segments else [0, size]
        for (_, kind), low, high in zip(segments or [(0, None)], bounds, bounds[1:]):
            kinds += [kind] * (high - low)
        if len(tokens) >= shard_tokens:
            shards.append(current)
            current = None
    return shards + ([current] if current else [])


@st.composite
def document(draw):
    vocabulary = [t for t in range(50) if t != EOT]
    body = draw(st.lists(st.sampled_from(vocabulary), max_size=20))
    segments = None
    if draw(st.booleans()):
        cuts = draw(st.sets(st.integers(1, max(1, len(body))), max_size=4)) if body else set()
        kinds = draw(st.lists(st.sampled_from(list(Kind)), min_size=5, max_size=5))
        segments = list(zip([0, *sorted(cuts)], kinds))
    return body, segments, draw(st.sampled_from([None, "en", "Python"]))


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(document(), max_size=25),
    pack_tokens=st.integers(1, 40),
    shard_tokens=st.integers(1, 120),
    token_dtype=st.sampled_from(["uint16", "uint32"]),
    modality=st.sampled_from(["code", "text"]),
    sequence_length=st.integers(1, 50),
)
def test_what_is_read_is_what_was_written(documents, pack_tokens, shard_tokens, token_dtype, modality, sequence_length):
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "split"
        write_split(folder, documents, pack_tokens=pack_tokens, shard_tokens=shard_tokens, token_dtype=token_dtype, modality=modality)
        assert verify_split(folder) == []
        reader = SplitReader(folder)
        own_kind = Kind[modality.upper()]
        shards = expected_shards(documents, pack_tokens, shard_tokens)
        assert len(reader.manifest.shards) == len(shards)
        windows = [(s, i * sequence_length) for s, (tokens, _, _) in enumerate(shards) for i in range((len(tokens) - 1) // sequence_length)]
        assert reader.num_windows(sequence_length) == len(windows)
        naive = np.array([shards[s][0][a : a + sequence_length + 1] for s, a in windows]).reshape(-1, sequence_length + 1)
        order = np.random.default_rng(0).permutation(len(windows))
        block = reader.read_windows(order, sequence_length)
        assert block.dtype == np.dtype(token_dtype)
        np.testing.assert_array_equal(block, naive[order])
        out = np.full((len(windows), sequence_length + 1), -1)
        reader.read_into(order, sequence_length, out)
        np.testing.assert_array_equal(out, naive[order])
        kinds = np.empty_like(out, np.uint8)
        reader.kinds_into(np.arange(len(windows)), sequence_length, kinds)
        for window, (shard, start) in enumerate(windows):
            _, starts, token_kinds = shards[shard]
            expected = [s - start for s in starts if start <= s <= start + sequence_length]
            found = reader.document_starts(window, sequence_length)
            assert found.dtype == np.int64
            assert found.tolist() == expected
            # the documented shortcut in bulk
            assert [p for p in found.tolist() if p] == (np.flatnonzero(naive[window][:-1] == EOT) + 1).tolist()
            wanted = [own_kind if kind is None else kind for kind in token_kinds[start : start + sequence_length + 1]]
            assert kinds[window].tolist() == wanted
            spans = reader.segments(window, sequence_length)
            assert spans[0][0] == 0
            assert all(a[1] != b[1] and a[0] < b[0] for a, b in pairwise(spans))
            bounds = [*[s for s, _ in spans], sequence_length + 1]
            assert [k for (_, k), a, b in zip(spans, bounds, bounds[1:]) for _ in range(b - a)] == wanted
        read = list(reader.documents())
        assert [d.tokens.tolist() for d in read] == [[*body, EOT] for body, _, _ in documents]
        assert [int(d.row["num_bytes"]) for d in read] == [3 * len(body) for body, _, _ in documents]
        assert [int(d.row["document_id"]) for d in read] == [document_id(f"d{n}") for n in range(len(documents))]
        assert [reader.document(n).tokens.tolist() for n in range(len(documents))] == [d.tokens.tolist() for d in read]
        packs = list(reader.packs())
        assert [t for pack in packs for t in pack.tokens.tolist()] == [t for tokens, _, _ in shards for t in tokens]
        assert sum(pack.documents.size for pack in packs) == len(documents)
        assert reader.manifest.languages == {
            name: count for name in ("Python", "en") if (count := sum(language == name for _, _, language in documents))
        }


def naive_documents(count=40, seed=3):
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(3, 50, generator.integers(0, 12)).tolist(), [(0, Kind.TEXT)] if n % 3 else None, "en") for n in range(count)
    ]


def test_segments_come_back_with_the_document(tmp_path):
    segments = [(0, Kind.CODE), (2, Kind.TEXT), (4, Kind.CODE)]
    write_split(tmp_path / "s", [([5, 6, 7, 8, 9], segments, None), ([5], None, None), ([6], [(0, Kind.CODE)], None)], pack_tokens=100)
    found = [d.segments for d in SplitReader(tmp_path / "s").documents()]
    assert found == [segments, [(0, Kind.CODE)], [(0, Kind.CODE)]]


def test_a_pack_of_the_sources_own_modality_has_no_segments_member(tmp_path):
    write_split(tmp_path / "s", [([5], [(0, Kind.CODE)], None), ([6], None, None)])
    assert b"segments.npy" not in (tmp_path / "s" / "shard-00000.tar").read_bytes()
    assert [d.segments for d in SplitReader(tmp_path / "s").documents()] == [None, None]


def test_stock_webdataset_reads_the_shards(tmp_path):
    documents = naive_documents()
    manifest = write_split(tmp_path / "s", documents)
    urls = [str(tmp_path / "s" / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert len(samples) == sum(shard.num_packs for shard in manifest.shards)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    tokens = np.concatenate([sample["tokens.npy"] for sample in samples])
    assert tokens.tolist() == [t for body, _, _ in documents for t in [*body, EOT]]
    assert sum(sample["json"]["num_documents"] for sample in samples) == len(documents)
    rows = np.concatenate([sample["documents.npy"] for sample in samples])
    assert rows["document_id"].tolist() == [document_id(f"d{n}") for n in range(len(documents))]
    assert any("segments.npy" in sample for sample in samples)


def test_every_array_is_64_byte_aligned_in_its_file(tmp_path):
    manifest = write_split(tmp_path / "s", naive_documents())
    for shard in manifest.shards:
        rows = np.load(tmp_path / "s" / (shard.name.removesuffix(".tar") + ".index.npy"), allow_pickle=False)
        offsets = np.concatenate([rows["tokens_offset"], rows["documents_offset"], rows["segments_offset"]])
        assert rows.size == shard.num_packs
        assert not np.any(offsets % 64)


def test_a_reader_survives_pickling(tmp_path):
    write_split(tmp_path / "s", naive_documents())
    reader = SplitReader(tmp_path / "s")
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(again.read_windows([3, 1], 10), reader.read_windows([3, 1], 10))


def test_windows_from_a_cold_disk_are_the_same(tmp_path, monkeypatch):
    """Pages asked for ahead (which a reader does once it has met major page faults) change nothing but the time."""
    write_split(tmp_path / "s", naive_documents())
    reader = SplitReader(tmp_path / "s")
    ids = np.arange(reader.num_windows(4))
    expected = reader.read_windows(ids, 4)
    for faults, asked in ((10**9, True), (10**9, True), (10**9 + 1, True)):
        monkeypatch.setattr(mapping.resource, "getrusage", lambda who, faults=faults: SimpleNamespace(ru_majflt=faults))
        assert reader._disk.is_read_from() is asked
        np.testing.assert_array_equal(reader.read_windows(ids, 4), expected)
    assert [reader._disk.is_read_from() for _ in range(300)].count(True) < 256


def test_an_empty_split_is_a_split(tmp_path):
    write_split(tmp_path / "s", [])
    reader = SplitReader(tmp_path / "s")
    assert reader.num_windows(16) == 0
    assert list(reader.documents()) == []
    assert reader.read_windows(np.empty(0, np.int64), 16).shape == (0, 17)
    assert verify_split(tmp_path / "s") == []


def test_a_window_outside_the_split_is_refused(tmp_path):
    write_split(tmp_path / "s", naive_documents())
    reader = SplitReader(tmp_path / "s")
    count = reader.num_windows(4)
    for bad in (-1, count):
        with pytest.raises(IndexError, match=f"it has 0 … {count - 1}"):
            reader.read_windows(np.array([0, bad]), 4)
    with pytest.raises(ValueError, match="shape"):
        reader.read_into(np.array([0]), 4, np.empty((1, 4), np.int64))
    with pytest.raises(ValueError, match="at least 1"):
        reader.num_windows(0)
    with pytest.raises(IndexError):
        reader.document(reader.manifest.num_documents)
