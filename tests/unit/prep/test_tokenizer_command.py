"""`codemix prep tokenizer`: unigram, and tokenizers that exist; both make shards that verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron_codemix.cli import main
from megatron_codemix.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parents[3]
CLOSING = "<|endoftext|>"


def texts() -> list[str]:
    return [file.read_text("utf-8") for file in sorted((HERE / "megatron_codemix" / "config").glob("*.py"))]


def prep(folder: Path, action: str, *arguments: str, **tokenizer: Any) -> int:
    rows = [{"text": part, "lang": "python"} for text in texts() for part in text.split("\n\n\n") if part.strip()]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "modality": "code", "paths": [str(folder / "a.jsonl")], "language_field": "lang"}
    config = {
        "output": str(folder / "out"),
        "sources": {"code": source},
        "split": {"validation": 0.2},
        "workers": 1,
        "tokenizer": tokenizer,
    }
    (folder / "prep.yaml").write_text(yaml.safe_dump(config))
    return main(["prep", action, str(folder / "prep.yaml"), *arguments])


def existing(folder: Path) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=[CLOSING], show_progress=False)
    backend.train_from_iterator(texts(), trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return backend


def test_a_tokenizer_that_exists_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = existing(tmp_path / "theirs")
    given = {"from_file": str(tmp_path / "theirs")}
    assert prep(tmp_path, "tokenizer", **given) == 0
    said = capsys.readouterr().out
    assert "add_prefix_space is off" in said and f"{CLOSING} closes documents" in said
    folder = tmp_path / "out" / "tokenizer"
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.end_of_text_id == original.token_to_id(CLOSING)
    assert {"report.json", "report.md", "bytes_per_token.png", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    record = json.loads((folder / "training.json").read_text())
    assert any("add_prefix_space" in line for line in record["changes"])
    assert record["sample"]["code"]["bytes_per_token"] > 1
    assert prep(tmp_path, "shards", **given) == 0
    assert main(["prep", "verify", str(tmp_path / "out")]) == 0
    assert prep(tmp_path, "tokenizer", **given) == 0
    assert "already there" in capsys.readouterr().out
    changed = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text())
    changed["normalizer"] = {"type": "NFC"}
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(changed))
    assert prep(tmp_path, "tokenizer", **given) == 2
    assert "other settings" in capsys.readouterr().err
    assert prep(tmp_path, "tokenizer", "--force", **given) == 0


def test_unigram(tmp_path: Path) -> None:
    given = {"model": "unigram", "vocab_size": 900}
    assert prep(tmp_path, "tokenizer", **given) == 0
    assert Tokenizer.load(tmp_path / "out" / "tokenizer").library == "sentencepiece"
    assert prep(tmp_path, "shards", **given) == 0
    assert main(["prep", "verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("source", "validation", "why"),
    [
        ({"only": {"langg": ["rust"]}}, 0, "3 not selected by langg); give files that do, or change the settings"),
        ({"clean": {"license": {"allow": ["permissive"]}}}, 0, "2 license: no licence, 1 empty); give files that do, or change"),
        ({}, 0.999999999, "2 held out, 1 empty)"),
    ],
)
def test_a_sample_that_finds_nothing_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: dict, validation: float, why: str
) -> None:
    rows = [{"text": "a = 1"}, {"text": "b = 2"}, {"text": " "}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = {"kind": "jsonl", "modality": "code", "paths": [str(tmp_path / "a.jsonl")], **source}
    config = {"output": str(tmp_path / "out"), "sources": {"code": code}, "split": {"validation": validation}, "workers": 1}
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    assert main(["prep", "tokenizer", str(tmp_path / "prep.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("codemix prep:")]
    assert "sources.code: holds no document to learn a tokenizer from (" in line and why in line
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_one_line_and_nothing_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prep(tmp_path, "tokenizer", from_file=str(tmp_path / "absent")) == 2
    assert "tokenizer.from_file: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "tokenizer").exists()
    assert prep(tmp_path, "tokenizer", end_of_text="</s>") == 2
    assert "tokenizer.end_of_text: is for tokenizer.from_file" in capsys.readouterr().err
