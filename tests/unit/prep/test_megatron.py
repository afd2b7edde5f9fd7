"""Megatron-LM's .bin and .idx ↔ shards: bit for bit both ways, read by megatron-core, and anything else refused in a line."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from data_prep.command import main
from data_prep.megatron import INDEX_NAME, corpus, from_megatron, to_megatron, token_dtype
from data_prep.verify import verify
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind, SplitReader, SplitWriter, document_id
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

TEXTS = ["def f(x):\n    return x\n", "plain words", "", "é" * 40, "x = 1\n" * 50, "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "tokenizer.model").write_bytes(train_tokenizer(TEXTS + ["def g(y):\n    pass\n" * 3], 450))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def build(prefix, documents, dtype=np.uint16, modes=None):
    """A corpus by Megatron's own builder: documents of sequences of tokens."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=modes is not None)
    for sequences in documents:
        builder.add_document([token for part in sequences for token in part], [len(part) for part in sequences], modes)
    builder.finalize(f"{prefix}.idx")
    return Path(prefix)


def both(prefix):
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def there_and_back(prefix, folder, output, split="train"):
    """The corpus → a split → the corpus; the split is whole."""
    manifest = from_megatron(prefix, output, "corpus", folder, "code", split)
    verdicts = verify(output / "corpus")
    assert [verdict.problems for verdict in verdicts] == [()]
    to_megatron(output / "corpus" / split, output / "again")
    assert both(output / "again") == both(prefix)
    return manifest, SplitReader(output / "corpus" / split)


def closed(tokenizer, text):
    return [*tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.int64])
def test_a_plain_corpus(tmp_path, folder, tokenizer, dtype):
    prefix = build(tmp_path / "plain", [[closed(tokenizer, text)] for text in TEXTS], dtype)
    manifest, reader = there_and_back(prefix, folder, tmp_path / "out")
    assert manifest.num_documents == len(TEXTS)
    assert manifest.num_bytes == sum(len(text.encode()) for text in TEXTS)
    assert [tokenizer.decode(document.tokens) for document in reader.documents()] == TEXTS
    assert [int(document.row["document_id"]) for document in reader.documents()] == [document_id(f"plain/{n}") for n in range(len(TEXTS))]
    assert not (reader.folder / INDEX_NAME).exists()
    assert manifest.prep["megatron"]["dtype"] == np.dtype(dtype).str


def test_documents_without_end_of_text(tmp_path, folder, tokenizer):
    documents = [[closed(tokenizer, text)[: -1 if number % 2 else None]] for number, text in enumerate(TEXTS[:2] + TEXTS[3:])]
    manifest, reader = there_and_back(build(tmp_path / "open", documents), folder, tmp_path / "out")
    assert manifest.prep["megatron"]["end_of_text_added"] == 2
    assert [tokenizer.decode(document.tokens) for document in reader.documents()] == TEXTS[:2] + TEXTS[3:]


def test_documents_of_several_sequences_and_empty_ones(tmp_path, folder, tokenizer):
    first = closed(tokenizer, TEXTS[4])
    documents = [[first[:3], first[3:7], [], first[7:]], [], [[]], [closed(tokenizer, "x")], []]
    manifest, reader = there_and_back(build(tmp_path / "sentences", documents), folder, tmp_path / "out")
    assert manifest.skipped == {"empty": 3}
    assert [tokenizer.decode(document.tokens) for document in reader.documents()] == [TEXTS[4], "x"]
    assert manifest.prep["megatron"]["sequences"] == 6
    dataset = IndexedDataset(str(tmp_path / "out" / "again"))
    assert dataset.document_indices.tolist() == [0, 4, 4, 5, 6, 6]


def test_packed_documents_are_divided_at_end_of_text(tmp_path, folder, tokenizer, monkeypatch):
    monkeypatch.setattr(corpus, "_BLOCK_TOKENS", 7)  # texts cross blocks
    packed = [token for text in TEXTS for token in closed(tokenizer, text)]
    prefix = build(tmp_path / "packed", [[packed[:-1]], [packed]], np.int32)
    manifest, reader = there_and_back(prefix, folder, tmp_path / "out")
    assert [tokenizer.decode(document.tokens) for document in reader.documents()] == TEXTS * 2
    ids = [int(document.row["document_id"]) for document in reader.documents()]
    assert ids[:2] == [document_id("packed/0"), document_id("packed/0.1")]
    assert ids[6:8] == [document_id("packed/1"), document_id("packed/1.1")]
    assert manifest.prep["megatron"]["end_of_text_added"] == 1


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 449), max_size=6), max_size=4), min_size=1, max_size=8),
    dtype=st.sampled_from([np.uint16, np.int32]),
    block=st.integers(1, 9),
)
def test_any_corpus_comes_back(tmp_path_factory, folder, tokenizer, documents, dtype, block):
    tmp_path = tmp_path_factory.mktemp("any")
    end = tokenizer.end_of_text_id
    documents = [[[end if token % 5 == 0 else token for token in part] for part in parts] for parts in documents]
    if not sum(len(part) for parts in documents for part in parts):
        return
    prefix = build(tmp_path / "any", documents, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK_TOKENS", block)
        from_megatron(prefix, tmp_path / "out", "corpus", folder, "code")
        to_megatron(tmp_path / "out" / "corpus" / "train", tmp_path / "again")
    assert both(tmp_path / "again") == both(prefix)


def write(folder, tokenizer, texts, vocab_size=None, segments=None):
    with SplitWriter(
        folder,
        source="code",
        split="train",
        modality="code",
        token_dtype="uint16" if (vocab_size or 0) <= 1 << 16 else "uint32",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=vocab_size or tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=30,
        shard_tokens=100,
        prep={},
    ) as writer:
        for number, text in enumerate(texts):
            writer.add(np.array(closed(tokenizer, text)), len(text.encode()), number, segments)
    return folder


@pytest.mark.parametrize("vocab_size, dtype", [(None, np.uint16), (65_499, np.uint16), (65_500, np.int32), (70_000, np.int32)])
def test_shards_are_written_as_megatron_writes_them(tmp_path, tokenizer, vocab_size, dtype):
    split = write(tmp_path / "out" / "code" / "train", tokenizer, TEXTS * 3, vocab_size)
    counts = to_megatron(split, tmp_path / "ours")
    theirs = build(tmp_path / "theirs", [[closed(tokenizer, text)] for text in TEXTS * 3], dtype)
    assert both(tmp_path / "ours") == both(theirs)
    assert token_dtype(vocab_size or 450) == dtype
    dataset = IndexedDataset(str(tmp_path / "ours"))
    assert counts[:3] == (len(dataset), len(dataset), sum(dataset.sequence_lengths.tolist()))
    for sequence, text in zip((dataset[n] for n in range(len(dataset))), TEXTS * 3, strict=True):
        assert sequence.tolist() == closed(tokenizer, text)


def test_segments_are_said_to_be_left_out(tmp_path, tokenizer, capsys):
    split = write(tmp_path / "out" / "code" / "train", tokenizer, TEXTS[:2], segments=[(0, Kind.COMMENT), (2, Kind.CODE)])
    assert main(["to-megatron", str(split), str(tmp_path / "ours")]) == 0
    assert "segments of 1 packs" in capsys.readouterr().out


def test_the_commands(tmp_path, folder, tokenizer, capsys):
    prefix = build(tmp_path / "corpus", [[closed(tokenizer, "one")[:-1]], []])
    arguments = ["--source", "code", "--tokenizer", str(folder), "--modality", "code"]
    assert main(["from-megatron", f"{prefix}.bin", str(tmp_path / "out"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "1 documents did not end with end of text" in out
    assert "1 empty documents" in out
    assert main(["from-megatron", str(prefix), str(tmp_path / "out"), *arguments, "--split", "valid"]) == 0
    with pytest.raises(UserError, match="finished split already"):
        main(["from-megatron", str(prefix), str(tmp_path / "out"), *arguments])
    with pytest.raises(UserError, match="beside 'tokenizer'"):
        main(["from-megatron", str(prefix), str(tmp_path / "out"), "--source", "tokenizer", *arguments[2:]])
    split = str(tmp_path / "out" / "code" / "train")
    with pytest.raises(UserError, match="is there already"):
        main(["to-megatron", split, str(prefix)])
    before = both(prefix)
    assert main(["to-megatron", split, str(prefix), "--force"]) == 0
    assert both(prefix) == before


def test_another_tokenizer_is_refused(tmp_path, folder, tokenizer):
    prefix = build(tmp_path / "corpus", [[[3, tokenizer.vocab_size, 2]]])
    with pytest.raises(UserError, match=f"token {tokenizer.vocab_size} at place 1 is outside"):
        from_megatron(prefix, tmp_path / "out", "code", folder, "code")
    with pytest.raises(UserError, match="token -1 at place 0"):
        from_megatron(build(tmp_path / "negative", [[[-1]]], np.int32), tmp_path / "out", "code", folder, "code")
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer([*TEXTS, "quite other words stand here" * 3], 440))
    with pytest.raises(UserError, match="another tokenizer"):
        from_megatron(prefix, tmp_path / "out", "code", other, "code")


def damaged(prefix, change):
    path = Path(f"{prefix}.idx")
    path.write_bytes(change(bytearray(path.read_bytes())))


def patched(offset, content):
    return lambda data: data[:offset] + content + data[offset + len(content) :]


def wrapping(data):
    """First sequences whose differences, wrapped at 64 bits, are all positive."""
    size = struct.unpack_from("<Q", data, 18)[0]
    starts = [0, 2**63 - 1, -(2**63), -1, size]
    return data[:26] + struct.pack("<Q", len(starts)) + data[34 : 34 + 12 * size] + struct.pack("<5q", *starts)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: b"", "no Megatron index"),
        (lambda data: data[:20], "no Megatron index"),
        (lambda data: data[:-1], "truncated or damaged"),
        (lambda data: data + b"more", "truncated or damaged"),
        (patched(0, b"X"), "no Megatron index"),
        (patched(9, struct.pack("<Q", 2)), "version 2"),
        (patched(17, b"\x07"), "whole numbers"),
        (patched(17, b"\x63"), "whole numbers"),
        (patched(17, b"\x04"), "end to end"),
        (patched(18, struct.pack("<Q", 2**60)), "truncated or damaged"),
        (wrapping, "do not cover"),
        (patched(34, struct.pack("<i", -1)), "end to end"),
        (lambda data: data[:-8] + struct.pack("<q", 1), "in order"),
    ],
)
def test_damaged_indices_are_refused(tmp_path, folder, tokenizer, change, message):
    prefix = build(tmp_path / "corpus", [[closed(tokenizer, "one")], [closed(tokenizer, "two")]])
    damaged(prefix, change)
    with pytest.raises(UserError, match=message) as caught:
        from_megatron(prefix, tmp_path / "out", "code", folder, "code")
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out" / "code").exists()


def test_multimodal_truncated_and_missing_files_are_refused(tmp_path, folder, tokenizer):
    prefix = build(tmp_path / "modes", [[closed(tokenizer, "one")]], modes=[1])
    with pytest.raises(UserError, match="multimodal"):
        from_megatron(prefix, tmp_path / "out", "code", folder, "code")
    prefix = build(tmp_path / "short", [[closed(tokenizer, "one")]])
    Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match="speaks of"):
        from_megatron(prefix, tmp_path / "out", "code", folder, "code")
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        from_megatron(prefix, tmp_path / "out", "code", folder, "code")


def test_an_altered_copy_of_the_index_is_refused(tmp_path, folder, tokenizer):
    prefix = build(tmp_path / "corpus", [[closed(tokenizer, "one")[:-1]]])
    there_and_back(prefix, folder, tmp_path / "out")
    damaged(tmp_path / "out" / "corpus" / "train" / "megatron", lambda data: data[:-1])
    with pytest.raises(UserError, match="missing or altered"):
        to_megatron(tmp_path / "out" / "corpus" / "train", tmp_path / "third")
    assert ["missing or altered" in verdict.problems[0] for verdict in verify(tmp_path / "out")] == [True]
    assert not list(tmp_path.glob("*third*"))


@settings(max_examples=120, deadline=None)
@given(which=st.sampled_from(["idx", "bin"]), place=st.integers(0, 200), content=st.binary(min_size=1, max_size=9), cut=st.booleans())
def test_any_damage_is_refused_or_is_another_whole_corpus(tmp_path_factory, folder, tokenizer, which, place, content, cut):
    tmp_path = tmp_path_factory.mktemp("damage")
    prefix = build(tmp_path / "corpus", [[closed(tokenizer, "one"), [5]], [closed(tokenizer, "two")]])
    path = Path(f"{prefix}.{which}")
    data = path.read_bytes()
    path.write_bytes(data[:place] + content + (b"" if cut else data[place + len(content) :]))
    try:
        from_megatron(prefix, tmp_path / "out", "corpus", folder, "code")
    except UserError:
        return
    to_megatron(tmp_path / "out" / "corpus" / "train", tmp_path / "again")
    assert both(tmp_path / "again") == both(prefix)


def test_an_empty_split_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no document"):
        to_megatron(write(tmp_path / "out" / "code" / "train", tokenizer, []), tmp_path / "ours")


def test_neither_way_needs_torch():
    code = "import sys, data_prep.megatron.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
