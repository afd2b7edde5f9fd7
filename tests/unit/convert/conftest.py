"""A run of ours and models of theirs: small, with weights large enough that each of them shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from megatron_codemix.checkpoint import State
from megatron_codemix.checkpoint.publish import publish
from megatron_codemix.cli import main
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.mixture import Ledger
from megatron_codemix.parallel import Topology
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

TEXTS = [f"def f{number}(x):\n    return x + {number}  # {'spam ' * (number % 7)}\n" * (1 + number % 5) for number in range(60)]
LICENSES = ("MIT", "Apache-2.0", None)
ENTRIES = 330
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 9},
    "qwen2": {},
    "qwen3": {"head_dim": 6},
    "starcoder2": {"sliding_window": None},
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_split: Callable[..., None]) -> Path:
    """FOLDER/tokenizer and FOLDER/code/{train,valid}."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_bytes(train_tokenizer(TEXTS, 450))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for split, texts in (("train", TEXTS[:50]), ("valid", TEXTS[50:])):
        write_split(folder / "code" / split, tokenizer, texts, licenses=LICENSES)
    return folder


def _run_config(corpus: Path, folder: Path, *, tied: bool, groups: int, precision: str, seed: int = 0) -> RunConfig:
    """A model whose random weights are large enough that every one of them shows in the log-probabilities."""
    raw = {
        "name": "tiny",
        "output": str(folder / "run"),
        "tokenizer": str(corpus / "tokenizer"),
        "sources": {"code": {"path": str(corpus / "code")}},
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": groups,
            "ffn_hidden_size": 48,
            "tied_embeddings": tied,
            "init_std": 0.3,
            "rope_base": 5000,
        },
        "stages": [
            {
                "name": "only",
                "tokens": 4096,
                "mixture": {"code": 1},
                "batch_size": 4,
                "sequence_length": 96,
                "learning_rate": {"shape": "cosine", "peak": 0.01, "warmup_tokens": 512},
            }
        ],
        "precision": precision,
        "seeds": {"init": seed},
    }
    return parse_config(raw, RunConfig, "test")


def _make_run(corpus: Path, folder: Path, *, tied: bool = False, groups: int = 2, precision: str = "fp32", seed: int = 0) -> Path:
    """A run folder with one checkpoint of step 7, never trained: conversion does not care."""
    config = _run_config(corpus, folder, tied=tied, groups=groups, precision=precision, seed=seed)
    tokenizer = Tokenizer.load(config.tokenizer)
    ledger = Ledger(["code"])
    ledger.add(np.zeros(2, int), np.arange(2), np.zeros(2, int), np.array([[1, 96, 95, 1, 200, 0], [1, 96, 96, 0, 210, 0]]))
    with Topology.join(config.parallel) as topology:
        engine = MegatronEngine(config, tokenizer.vocab_size, topology)
        state = State(
            step=7,
            config=config,
            vocab_size=tokenizer.vocab_size,
            tokenizer_model=tokenizer.model,
            plan="0" * 64,
            cursors={"code": 2},
            ledger=ledger.as_json(),
            lineage={"format_version": 1, "plan": None, "intervals": [], "skipped": []},
        )
        publish(config.output, state, engine.pieces(), topology)
    return config.output


@pytest.fixture(scope="session")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_run(corpus, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """make_run(corpus, folder, tied=, groups=, precision=, seed=) → a run folder."""
    return _make_run


def _write_tokenizer(folder: Path, size: int = 320, texts: Sequence[str] = TEXTS) -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)


def _write_model(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = "30KB", **changed: Any) -> Path:
    """A directory as transformers writes it, of random weights large enough that each of them shows."""
    shape = {
        "vocab_size": ENTRIES,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(5)
    config = AutoConfig.for_model(family.split()[0], **{**shape, **FAMILIES[family], **changed})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    _write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama directory; copy it before changing it."""
    return _write_model(tmp_path_factory.mktemp("original") / "llama", "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "llama"))


def _refusal(capsys: pytest.CaptureFixture, source: Path, out: Path, *options: str) -> str:
    """The lines that a refused conversion prints; nothing may be left of it."""
    capsys.readouterr()
    assert main(["convert", "from-hf", str(source), str(out), *options]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not list(out.parent.glob(f"*{out.name}*"))
    return said


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """write_model(folder, family, dtype, shard, **fields of config.json) → the folder."""
    return _write_model


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., None]:
    """write_tokenizer(folder, size, texts): a tokenizer with so many ids."""
    return _write_tokenizer


@pytest.fixture
def refusal() -> Callable[..., str]:
    """refusal(capsys, source, out, *options) → what a refused `from-hf` prints."""
    return _refusal
