"""A small real corpus, a study over it, and a stand-in for the commands (stand_in.py), so that a study runs in seconds."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_codemix.study import stages
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

STAND_IN = Path(__file__).with_name("stand_in.py")
_WORDS = "the study of code and text says that if x in list then return value def class import for while not".split()  # noqa: SIM905


def _texts(source: str, number: int) -> list[str]:
    random = np.random.default_rng([len(source), number])
    return [" ".join(random.choice(_WORDS, 30)) + (" def\n" if source == "code" else " the\n") for _ in range(number)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, write_split) -> Path:
    """Two small sources with a real tokenizer, real shards and held-out documents."""
    folder = tmp_path_factory.mktemp("corpus")
    model = train_tokenizer(_texts("code", 200) + _texts("text", 200), 520)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for source in ("code", "text"):
        for split, number in (("train", 300), ("valid", 20)):
            write_split(folder / source / split, tokenizer, _texts(source, number), modality=source)
        with gzip.open(folder / source / "valid" / "documents.jsonl.gz", "wt", encoding="utf-8") as handle:
            for text in _texts(source, 20):
                handle.write(json.dumps({"text": text}) + "\n")
    return folder


def _raw(corpus: Path, output: Path) -> dict:
    return {
        "name": "small",
        "output": str(output),
        "vary": "code",
        "against": "text",
        "shares": [0, 0.25, "1/2"],
        "seeds": [0, 1],
        "banner": "made by a test",
        "base": {
            "tokenizer": str(corpus / "tokenizer"),
            "sources": {"code": {"path": str(corpus / "code")}, "text": {"path": str(corpus / "text")}},
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 32},
            "stages": [
                {
                    "name": "main",
                    "tokens": 2048,
                    "batch_size": 8,
                    "sequence_length": 16,
                    "learning_rate": {"shape": "constant", "peak": 1e-3},
                }
            ],
        },
        "evaluation": {"bits_per_byte": {name: str(corpus / name / "valid" / "documents.jsonl.gz") for name in ("code", "text")}},
    }


@pytest.fixture
def study(corpus, tmp_path, monkeypatch) -> Path:
    """study.yaml in an empty folder, with the stand-in in place of the commands."""
    monkeypatch.setattr(stages, "_CODEMIX", (sys.executable, str(STAND_IN)))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(_raw(corpus, tmp_path / "study"), sort_keys=False))
    return path


@pytest.fixture
def calls(tmp_path):
    """What the stand-in was called for, in order: `calls() == ["ARM:STAGE", …]`."""
    path = tmp_path / "calls"
    return lambda: path.read_text().split() if path.exists() else []


@pytest.fixture
def raw(corpus):
    """`raw(output)`: the mapping of a valid study.yaml over the corpus: 3 shares × 2 seeds."""
    return lambda output: _raw(corpus, output)


@pytest.fixture(scope="session")
def texts():
    """`texts(source, number)`: so many made-up documents of a source."""
    return _texts


@pytest.fixture(scope="session")
def stand_in() -> Path:
    """The script that takes the place of the commands."""
    return STAND_IN
