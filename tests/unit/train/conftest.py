"""A tiny corpus, a run over it, and what to compare two runs by; megatron-core is imported once for all tests here."""

import io
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.symbols import RESERVED
from megatron_codemix.train import read_log

SEQUENCE = 32
BATCH = 4


def sentences(seed: int, count: int) -> list[str]:
    """Text with regularities that a tiny model can learn in a few steps."""
    draw = random.Random(seed)
    names = ["alpha", "beta", "gamma", "delta"]
    lines = []
    for _ in range(count):
        name = draw.choice(names)
        lines.append("".join(f"def {name}(x):\n    return {name} + x\n" for _ in range(draw.randint(1, 4))))
    return lines


def train_tokenizer(folder: Path, texts: list[str]) -> Tokenizer:
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=len(RESERVED) + 256 + 60,
        control_symbols=[symbol for symbol in RESERVED if symbol != "<unk>"],
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, write_split) -> Path:
    """Two sources with held-out splits, and their tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    code, text = sentences(0, 400), [document.upper() for document in sentences(1, 400)]
    tokenizer = train_tokenizer(folder / "tokenizer", code + text)
    for source, modality, documents in (("code", "code", code), ("text", "text", text)):
        write_split(folder / source / "train", tokenizer, documents[:360], modality=modality)
        write_split(folder / source / "valid", tokenizer, documents[360:], modality=modality)
    return folder


@pytest.fixture
def run_file(corpus, tmp_path) -> Path:
    return write_run_file(corpus, tmp_path)


def write_run_file(corpus: Path, folder: Path) -> Path:
    """FOLDER/run.yaml: two stages that differ in mixture, batch, sequence length and learning rate."""
    config = {
        "name": "tiny",
        "output": str(folder / "run"),
        "tokenizer": str(corpus / "tokenizer"),
        "sources": {name: {"path": str(corpus / name)} for name in ("code", "text")},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64},
        "stages": [
            {
                "name": "first",
                "tokens": 8 * BATCH * SEQUENCE,
                "mixture": {"code": 0.25, "text": 0.75},
                "batch_size": BATCH,
                "sequence_length": SEQUENCE,
                "learning_rate": {"shape": "cosine", "peak": 0.01, "final": 0.002, "warmup_tokens": 2 * BATCH * SEQUENCE},
            },
            {
                "name": "second",
                "tokens": 4 * BATCH * SEQUENCE,
                "mixture": {"code": 1},
                "batch_size": BATCH // 2,
                "sequence_length": 2 * SEQUENCE,
                "learning_rate": {"shape": "constant", "peak": 0.002},
            },
        ],
        "precision": "fp32",
        "micro_batch_size": 2,
        "validation": {"every_steps": 5, "max_windows": 6},
        "checkpoint": {"every_steps": 3},
        "logging": {"every_steps": 4, "peak_tflops": 0.1},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def figures(run_folder: Path) -> list[tuple]:
    """Everything in the log that must not depend on interruptions, with all digits."""
    kept = []
    for line in read_log(run_folder):
        if line["kind"] == "step":
            kept.append((line["step"], line["stage"], line["loss"], line["learning_rate"], line["grad_norm"], line["tokens"]))
        elif line["kind"] == "validation":
            kept.append((line["step"], line["source"], line["loss"], line["bits_per_byte"], line["target_tokens"], line["bytes"]))
    return kept


def final_state(run_folder: Path) -> tuple:
    checkpoint = Checkpoint.open(run_folder)
    weights = {path.name: path.read_bytes() for path in checkpoint.weights.iterdir() if path.suffix == ".safetensors"}
    return checkpoint.step, checkpoint.ledger(), checkpoint.record.cursors, weights


def train(run_file: Path, *overrides: str) -> int:
    return main(["train", str(run_file), *overrides])


@pytest.fixture(scope="session")
def reference(corpus, tmp_path_factory) -> Path:
    """The run folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    path = write_run_file(corpus, folder)
    assert train(path) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The helpers above, for the tests beside this file."""
    return SimpleNamespace(
        batch=BATCH,
        sequence=SEQUENCE,
        train=train,
        figures=figures,
        final_state=final_state,
        sentences=sentences,
        train_tokenizer=train_tokenizer,
        write_run_file=write_run_file,
    )
