"""`codemix prep verify` on real tokenised text: whole outputs pass, each kind of damage is one line."""

from __future__ import annotations

import ast
import gzip
import hashlib
import inspect
import json
import shutil
import tarfile

import numpy as np
import pytest

from data_prep.verify import find_splits, main_verify, verify
from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitWriter, document_id, is_split, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

SOURCES = {
    "code": [inspect.getsource(module) for module in (ast, json, shutil, tarfile)],
    "text": [inspect.getdoc(tarfile.TarFile) or ""] * 2,
}


@pytest.fixture(scope="module")
def model():
    return train_tokenizer([text for texts in SOURCES.values() for text in texts], 700)


def write(folder, tokenizer, texts, split, names=None, wrong_bytes=0, prep=None):
    with SplitWriter(
        folder,
        source=folder.parent.name,
        split=split,
        modality="code",
        token_dtype=token_dtype_for(tokenizer.vocab_size),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=2000,
        shard_tokens=20_000,
        prep=prep or {},
    ) as writer:
        for number, text in enumerate(texts):
            tokens = np.append(tokenizer.encode(text), tokenizer.end_of_text_id)
            name = names[number] if names else f"{split}/{number}"
            writer.add(tokens, len(text.encode()) + wrong_bytes, document_id(name), language="Python")


@pytest.fixture
def output(tmp_path, model):
    """OUTPUT with a tokenizer and two sources."""
    folder = tmp_path / "output"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer(model)
    for source, texts in SOURCES.items():
        write(folder / source / "train", tokenizer, texts[:-1], "train")
        write(folder / source / "valid", tokenizer, texts[-1:], "valid")
    return folder


def problems_of(folder):
    return [problem for verdict in verify(folder) for problem in verdict.problems]


def test_a_whole_output_is_ok_a_line_per_split(output, capsys):
    assert main_verify([str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"OK {output / source / split}" for source in ("code", "text") for split in ("train", "valid")
    ]
    tokens = sum(len(Tokenizer.load(output / "tokenizer").encode(text)) + 1 for text in SOURCES["code"][:-1])
    assert f" 3 documents, {tokens:,} tokens, {sum(len(text.encode()) for text in SOURCES['code'][:-1]):,} bytes" in lines[0]


def test_a_source_or_a_split_can_be_named_alone(output):
    assert find_splits(output / "code") == [output / "code" / "train", output / "code" / "valid"]
    assert find_splits(output / "text" / "valid") == [output / "text" / "valid"]
    assert problems_of(output / "code") == []
    assert problems_of(output / "text" / "valid") == []


def test_the_split_is_found_from_inside_it(output, monkeypatch):
    monkeypatch.chdir(output / "code" / "train")
    assert main_verify(["."]) == 0


def test_an_altered_byte_fails_and_the_other_splits_are_still_verified(output, capsys):
    path = output / "code" / "valid" / "shard-00000.tar"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        main_verify([str(output)])
    assert len(caught.value.problems) == 1
    assert f"{path}: altered" in caught.value.problems[0]
    assert capsys.readouterr().out.count("OK ") == 3


def test_an_unfinished_split_is_not_passed_over(output):
    (output / "code" / "train" / "manifest.json").unlink()
    assert is_split(output / "code" / "train")
    problems = problems_of(output)
    assert len(problems) == 1
    assert "code/train: not a finished split" in problems[0]


def test_another_tokenizer_is_named(output, model):
    longer = model + b"\xa2\x06\x01x"  # an unknown protobuf field: the same pieces, another file
    (output / "tokenizer" / "tokenizer.model").write_bytes(longer)
    problems = problems_of(output / "code" / "train")
    assert len(problems) == 1
    assert hashlib.sha256(longer).hexdigest()[:12] in problems[0]
    assert hashlib.sha256(model).hexdigest()[:12] in problems[0]


def test_a_missing_tokenizer_is_named(output):
    shutil.rmtree(output / "tokenizer")
    assert ["no tokenizer here" in problem for problem in problems_of(output / "text")] == [True, True]


def test_byte_counts_must_be_what_the_tokens_stand_for(output, model):
    shutil.rmtree(output / "text" / "valid")
    write(output / "text" / "valid", Tokenizer(model), SOURCES["text"], "valid", wrong_bytes=1)
    problems = problems_of(output / "text" / "valid")
    assert len(problems) == 1
    size = len(SOURCES["text"][0].encode())
    assert "2 documents with a wrong number of bytes" in problems[0]
    assert f"claims {size + 1}, its tokens stand for {size}" in problems[0]


def test_a_held_out_document_in_train_is_found(output, model):
    shutil.rmtree(output / "code" / "valid")
    write(output / "code" / "valid", Tokenizer(model), SOURCES["code"][-1:], "valid", names=["train/1"])
    problems = problems_of(output)
    assert len(problems) == 1
    assert f"{output / 'code' / 'train'}: 1 of its documents are also in {output / 'code' / 'valid'}" in problems[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: lines, None),
        (lambda lines: list(reversed(lines)), None),
        (lambda lines: lines[:-1], "lacks 1 of the split's documents and has 0 others"),
        (lambda lines: [*lines, lines[0]], "lacks 0 of the split's documents and has 1 others"),
        (lambda lines: [lines[0].replace("def", "defs", 1), *lines[1:]], "lacks 1 of the split's documents and has 1 others"),
        (lambda lines: ["{", *lines], "cannot be read"),
        (lambda lines: ["[]", *lines], "cannot be read"),
        (lambda lines: ['{"id": 7, "text": 8}', *lines], "cannot be read"),
    ],
)
def test_the_texts_for_evaluation_are_the_documents_of_the_shards(output, model, damage, words):
    texts = SOURCES["code"][:2]
    shutil.rmtree(output / "code" / "valid")
    write(output / "code" / "valid", Tokenizer(model), texts, "valid", names=["a", "b"])
    lines = [json.dumps({"id": name, "text": text}) for name, text in zip("ab", texts)]
    path = output / "code" / "valid" / "documents.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(damage(lines)).encode()))
    problems = problems_of(output / "code" / "valid")
    assert [f"{path}: " in problem and words in problem for problem in problems] == ([] if words is None else [True])


def test_truncated_texts_are_found(output, model):
    path = output / "code" / "valid" / "documents.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"id": "valid/0", "text": SOURCES["code"][-1]}).encode()))
    assert problems_of(output / "code" / "valid") == []
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in problems_of(output / "code" / "valid")[0]


def test_a_folder_without_splits_is_refused(tmp_path):
    for folder, words in ((tmp_path, "holds no split"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(UserError, match=words):
            main_verify([str(folder)])


def test_wrong_arguments_are_one_line():
    with pytest.raises(UserError, match="codemix prep verify --help"):
        main_verify([])


def test_documents_for_evaluation_must_be_those_of_the_manifest(output, model):
    valid, tokenizer = output / "text" / "valid", Tokenizer(model)
    shutil.rmtree(valid)
    path = valid / "documents.jsonl.gz"

    def put(text):
        valid.mkdir(exist_ok=True)
        with gzip.open(path, "wt") as lines:
            lines.write(json.dumps({"id": "valid/0", "text": text}) + "\n")

    put("abc")
    write(valid, tokenizer, ["abc"], "valid", prep={"documents_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    assert problems_of(valid) == []
    put("abd")
    assert ["altered" in problem for problem in problems_of(valid)] == [True]
    path.unlink()
    assert ["is missing" in problem for problem in problems_of(valid)] == [True]


def test_a_store_is_named_as_such():
    with pytest.raises(UserError, match="lies in a store"):
        main_verify(["s3://bucket/code/train"])
