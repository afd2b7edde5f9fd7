"""`codemix train` on a tiny synthetic corpus: learns, resumes bit for bit after being stopped or killed, refuses other runs.

The command runs in this process (one import of megatron-core for all tests), except where a process is killed.
"""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.engine import MegatronEngine, StepResult
from megatron_codemix.shards import SplitWriter
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer_symbols import RESERVED
from megatron_codemix.train import finished, read_log
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.run import Run

STEPS = 12
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


def write_split(folder: Path, source: str, split: str, modality: str, tokenizer: Tokenizer, texts: list[str]) -> None:
    writer = SplitWriter(
        folder / source / split,
        source=source,
        split=split,
        modality=modality,
        token_dtype="uint16",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=2048,
        shard_tokens=8192,
        prep={},
    )
    with writer:
        for number, text in enumerate(texts):
            tokens = [*tokenizer.encode(text).tolist(), tokenizer.end_of_text_id]
            writer.add(tokens, num_bytes=len(text.encode()), document_id=number)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two sources with held-out splits, and their tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    code, text = sentences(0, 400), [document.upper() for document in sentences(1, 400)]
    tokenizer = train_tokenizer(folder / "tokenizer", code + text)
    for source, modality, documents in (("code", "code", code), ("text", "text", text)):
        write_split(folder, source, "train", modality, tokenizer, documents[:360])
        write_split(folder, source, "valid", modality, tokenizer, documents[360:])
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
    weights = {path.name: path.read_bytes() for path in checkpoint.weights.iterdir() if path.suffix == ".distcp"}
    return checkpoint.step, checkpoint.ledger(), checkpoint.record.cursors, weights


def train(run_file: Path, *overrides: str) -> int:
    return main(["train", str(run_file), *overrides])


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory) -> Path:
    """The run folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    path = write_run_file(corpus, folder)
    assert train(path) == 0
    return folder / "run"


def stop_at(monkeypatch, step: int, action) -> None:
    """Do something right after update number `step` was logged."""
    original = Recorder.step

    def step_and_act(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            action()

    monkeypatch.setattr(Recorder, "step", step_and_act)


def test_a_run_learns_and_leaves_what_the_formats_say(reference, capsys):
    lines = read_log(reference)
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in steps] == ["first"] * 8 + ["second"] * 4
    assert [line["tokens"] for line in steps] == [BATCH * SEQUENCE * step for step in range(1, STEPS + 1)]
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert all(0 < line["mfu"] < 10 for line in steps)
    validations = {(line["step"], line["source"]): line for line in lines if line["kind"] == "validation"}
    assert set(validations) == {(step, source) for step in (5, 10, STEPS) for source in ("code", "text")}
    assert validations[STEPS, "code"]["bits_per_byte"] < validations[5, "code"]["bits_per_byte"]
    assert all(line["target_tokens"] == 6 * (SEQUENCE if line["step"] <= 8 else 2 * SEQUENCE) for line in validations.values())
    assert finished(reference)

    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]
    checkpoint = Checkpoint.open(reference)
    assert checkpoint.step == STEPS
    assert checkpoint.config() == load_config(reference / "config.yaml", RunConfig)
    ledger = checkpoint.ledger()["sources"]
    assert {name: entry["tokens"] for name, entry in ledger.items()} == {"code": 768, "text": 768}
    assert checkpoint.record.plan == json.loads((reference / "plan.json").read_text())["fingerprint"]
    assert list((reference / "tensorboard").iterdir())
    assert (reference / "train.lock").read_bytes() == b""


def test_a_finished_run_says_so(corpus, reference, capsys):
    log = (reference / "log.jsonl").read_bytes()
    assert train(reference.parent / "run.yaml") == 0
    assert "finished already" in capsys.readouterr().out
    assert (reference / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("step", [1, 4, 8, 10])
def test_stopped_by_a_signal_and_resumed_it_is_bit_identical(run_file, reference, monkeypatch, capsys, step):
    with monkeypatch.context() as patched:
        stop_at(patched, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(run_file) == 75
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step == step
    assert f"stopped at step {step}" in capsys.readouterr().out
    assert read_log(run_folder)[-1] | {"time": 0} == {
        "kind": "end",
        "step": step,
        "reason": "stopped",
        "tokens": step * BATCH * SEQUENCE,
        "time": 0,
    }
    assert train(run_file) == 0
    assert figures(run_folder) == figures(reference)
    assert final_state(run_folder) == final_state(reference)
    attempts = [
        (interval["first"], interval["end"], interval["attempt"]) for interval in Checkpoint.open(run_folder).lineage()["intervals"]
    ]
    assert attempts == [(0, step, 0), (step, STEPS, 1)]


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def test_a_crash_costs_only_the_steps_since_the_checkpoint(run_file, reference, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 8, crash)
        with pytest.raises(Crash):
            train(run_file)
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step == 6
    with open(run_folder / "log.jsonl", "ab") as log:
        log.write(b'{"kind": "step", "st')  # as a power cut would leave it
    assert train(run_file, "micro_batch_size=2") == 0
    assert figures(run_folder) == figures(reference)
    assert final_state(run_folder) == final_state(reference)


def test_killed_with_signal_9_it_continues_bit_identically(run_file, reference):
    run_folder = run_file.parent / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "megatron_codemix.cli", "train", str(run_file)]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    # stderr ends only when no process of the run is left: communicate() below also shows that a kill leaves no orphan
    deadline = time.monotonic() + 120
    while not (run_folder / "checkpoints" / "step-00000003").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.kill()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, errors
    assert not finished(run_folder)
    assert train(run_file) == 0
    assert figures(run_folder) == figures(reference)
    assert final_state(run_folder) == final_state(reference)


def test_a_damaged_newest_checkpoint_costs_a_warning_and_some_steps(run_file, reference, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_at(patched, 7, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert train(run_file) == 75
    run_folder = run_file.parent / "run"
    part = max((run_folder / "checkpoints" / "step-00000007" / "weights").glob("*.distcp"))
    os.truncate(part, part.stat().st_size - 1)
    assert train(run_file) == 0
    shown = capsys.readouterr().err
    assert f"warning: {part}" in shown
    assert "damaged-step-00000007" in shown
    assert figures(run_folder) == figures(reference)
    assert final_state(run_folder) == final_state(reference)


def test_a_validation_missed_by_a_crash_is_made_up_for(run_file, reference, monkeypatch):
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "validate", lambda self, done: crash() if done == STEPS else None)
        with pytest.raises(Crash):
            train(run_file, "validation.every_steps=0")
    assert Checkpoint.open(run_folder).step == STEPS
    assert not finished(run_folder)
    assert train(run_file, "validation.every_steps=0") == 0
    assert figures(run_folder)[-2:] == figures(reference)[-2:]
    assert finished(run_folder)


def test_divergence_ends_with_one_line_and_saves_nothing(run_file, monkeypatch, capsys):
    original = MegatronEngine.train_step

    def diverge(self, batches, rate):
        result = original(self, batches, rate)
        return StepResult(float("nan"), result.target_tokens, result.grad_norm) if self.step == 5 else result

    monkeypatch.setattr(MegatronEngine, "train_step", diverge)
    assert train(run_file) == 1
    assert "codemix train: step 5: loss nan" in capsys.readouterr().err
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step == 3
    assert read_log(run_folder)[-1]["kind"] == "diverged"


REFUSED = [
    (["model.hidden_size=64"], ["model.hidden_size: 64 now, 32 in the checkpoint"]),
    (["stages.0.learning_rate.peak=0.02", "seeds.data=1"], ["stages.0.learning_rate.peak: 0.02 now, 0.01", "seeds.data: 1 now, 0"]),
    (["stages.1.tokens=1024"], ["stages.1.tokens: 1024 now, 512"]),
    (["optimizer.weight_decay=0.2"], ["optimizer.weight_decay: 0.2 now, 0.1"]),
    (["precision=bf16"], ["precision: 'bf16' now, 'fp32'"]),
]


@pytest.mark.parametrize("overrides, parts", REFUSED)
def test_another_run_in_the_folder_is_refused_field_by_field(reference, capsys, overrides, parts):
    before = (reference / "log.jsonl").read_bytes(), (reference / "config.yaml").read_bytes()
    assert train(reference.parent / "run.yaml", *overrides) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == len(parts)
    for line, part in zip(shown, parts):
        assert part in line
        assert "choose another 'output'" in line
    assert before == ((reference / "log.jsonl").read_bytes(), (reference / "config.yaml").read_bytes())


def test_shards_made_anew_are_another_run(corpus, reference, tmp_path, capsys):
    other = tmp_path / "other"
    write_split(other, "text", "train", "text", Tokenizer.load(corpus / "tokenizer"), sentences(7, 300))
    assert train(reference.parent / "run.yaml", f"sources.text.path={other / 'text'}", "sources.text.validation_split=null") == 2
    shown = capsys.readouterr().err
    assert re.search(r"holds a run with another plan \(sources\.text\.fingerprint: .* now, .* in the checkpoint\)", shown)
    assert shown.count("\n") == 1


def test_a_tokenizer_that_does_not_match_the_shards(run_file, tmp_path, capsys):
    train_tokenizer(tmp_path / "other", sentences(9, 50))
    assert train(run_file, f"tokenizer={tmp_path / 'other'}") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 4
    assert all("made with another tokenizer" in line and line.startswith("codemix train: sources.") for line in shown)
    assert not (run_file.parent / "run").exists()


def test_every_missing_input_is_named_at_once(run_file, tmp_path, capsys):
    assert train(run_file, f"tokenizer={tmp_path / 'none'}", f"sources.code.path={tmp_path / 'nothing'}") == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 3
    assert "no tokenizer here" in shown[0]
    assert "sources.code: " in shown[1]


def test_a_folder_that_is_being_trained_into_is_refused(run_file, capsys):
    with RunLock(run_file.parent / "run"):
        assert train(run_file) == 2
    assert "is training into it already" in capsys.readouterr().err
    assert train(run_file) == 0
