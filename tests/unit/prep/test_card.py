"""The card of a dataset: its numbers are the manifests', they reconcile, and no name becomes markup."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_prep.card import CARD_NAME, main, make_card, write_card
from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitWriter

PREP = {
    "source": {"kind": "jsonl", "paths": ["corpus"], "clean": {"secrets": {"action": "mask"}, "license": None}},
    "deduplicate": {"exact": True, "near": {"threshold": 0.7}},
    "inputs": {"files": 3, "bytes": 12345, "sha256": "0" * 64},
    "documents_read": 16,
    "documents_divided": 2,
    "documents_joined": 0,
    "documents_cut": 4,
    "changed": {"secrets": {"AWS key": 5}},
}
SKIPPED = {"undecodable": 2, "deduplicate: near duplicate": 4, "text_quality: too few words": 1}


def write(output, split="train", documents=9, prep=PREP, skipped=SKIPPED, languages=("Python", None, "evil | <script>`"), **more):
    folder = output / "code" / split
    writer = SplitWriter(
        folder,
        source="code",
        split=split,
        modality="code",
        token_dtype="uint16",
        tokenizer_fingerprint="ab" * 32,
        vocab_size=300,
        end_of_text_id=2,
        pack_tokens=100,
        shard_tokens=200,
        prep=prep,
    )
    with writer:
        for number in range(documents):
            writer.add(np.array([5] * (number + 1) + [2]), 10 * (number + 1), number, None, languages[number % len(languages)], "MIT")
        writer.close(skipped, **more)


@pytest.fixture
def output(tmp_path):
    write(tmp_path / "out", decontaminated_against=["humaneval.jsonl"])
    write(tmp_path / "out", "valid", 2, {}, {"also in training": 0}, ("Go",), leakage={"some block": 1})
    (tmp_path / "out" / "tokenizer").mkdir()
    sample = {"code": {"documents": 3, "bytes": 900, "tokens": 300, "bytes_per_token": 3.0}}
    (tmp_path / "out" / "tokenizer" / "training.json").write_text(json.dumps({"sample": sample}))
    return tmp_path / "out"


def row(card, start):
    lines = [line for line in card.splitlines() if line.startswith(f"| {start} |")]
    assert len(lines) == 1, start
    return [cell.strip() for cell in lines[0].replace("\\|", "\0").strip("|").split(" | ")]


def test_the_numbers_are_the_manifests(output):
    card = make_card(output)
    assert card.startswith("# Dataset of code\n")
    assert row(card, "code / train")[1:6] == ["code", "9", "450", "54", "8.333"]
    assert row(card, "all")[2:5] == ["11", "480", "59"]
    assert "300 pieces, end of text 2, fingerprint `" + "ab" * 32 in card
    assert row(card, "code") == ["code", "3", "900", "300", "3.000"]
    assert "Read from 3 inputs of 12,345 bytes." in card
    assert row(card, "Python")[1:] == ["3", "0", "33.33 %"]
    assert row(card, "Go")[1:] == ["0", "2", "0.00 %"]
    assert row(card, "not stated")[1:] == ["3", "0", "33.33 %"]
    assert row(card, "MIT")[1:] == ["9", "2", "100.00 %"]
    assert row(card, "near duplicate")[1] == "4"
    assert row(card, "text\\_quality")[1:] == ["too few words", "1", "5.56 %"]
    assert row(card, "reading")[1:3] == ["undecodable", "2"]
    assert row(card, "secrets") == ["secrets", "AWS key", "5"]
    assert "- humaneval.jsonl" in card
    assert row(card, "some block")[1:] == ["1", "50.00 %"]
    assert "threshold: 0.7" in card
    assert "license:" not in card
    assert "4 documents were cut" in card


def test_documents_reconcile_or_the_card_says_so(output, tmp_path):
    assert "not accounted for" not in make_card(output)
    write(tmp_path / "other", prep={**PREP, "documents_read": 20})
    assert "**6 documents are not accounted for.**" in make_card(tmp_path / "other")


def test_names_do_not_become_markup(output):
    card = make_card(output)
    assert "<script>" not in card.replace("\\<script>", "")
    assert "evil \\| \\<script>\\`" in card


def test_a_card_without_steps_or_tokenizer_says_what_was_not_done(tmp_path):
    write(tmp_path / "out", prep={}, skipped={}, languages=(None,))
    card = make_card(tmp_path / "out")
    assert "None were looked for." in card
    assert "Compared with no benchmark." in card
    assert "### Languages\n\nNone are stated." in card
    assert "### Left out" not in card


def test_the_command_writes_or_prints(output, capsys):
    assert main([str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output / CARD_NAME)
    assert (output / CARD_NAME).read_text() == make_card(output)
    assert main([str(output), "--print"]) == 0
    assert capsys.readouterr().out == make_card(output)
    assert write_card(output) == output / CARD_NAME
    assert (output / CARD_NAME).read_text() == make_card(output)


def test_a_source_that_is_not_finished_is_left_out(output):
    (output / "text" / "train").mkdir(parents=True)
    (output / "text" / "train" / "shard-00000.tar").touch()
    assert "text / train" not in make_card(output)


def test_nothing_to_describe_is_one_line(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=r"no such folder|holds no split"):
            main([str(path)])
