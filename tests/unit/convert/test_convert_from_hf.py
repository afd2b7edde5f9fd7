"""`codemix convert from-hf`: what a run begins with is what transformers' model says, or nothing appears."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_codemix.checkpoint import Checkpoint, from_hf
from megatron_codemix.checkpoint.hf_weights import HfWeights
from megatron_codemix.cli import main
from megatron_codemix.pieces import PieceReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.importing import import_tokenizer

TEXTS = [f"def f{number}(x):\n    return x + {number}  # {'spam ' * (number % 7)}\n" * (1 + number % 5) for number in range(60)]
ENTRIES = 330
WriteModel = Callable[..., Path]
Refusal = Callable[..., str]
FAMILIES = ("llama", "llama tied", "mistral", "qwen2", "qwen3", "starcoder2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_exact_to_the_bit(tmp_path: Path, family: str, dtype: torch.dtype, write_model: WriteModel) -> None:
    original = write_model(tmp_path / "theirs", family, dtype)
    assert main(["convert", "from-hf", str(original), str(tmp_path / "ours")]) == 0
    checkpoint = Checkpoint.open(tmp_path / "ours")
    assert checkpoint.record.vocab_size == ENTRIES
    assert checkpoint.record.padded_vocab_size == 384
    assert {PieceReader(checkpoint.weights).kinds(key) for key in PieceReader(checkpoint.weights).keys()} == {("param",)}  # noqa: SIM118
    padding = PieceReader(checkpoint.weights).whole("embedding.word_embeddings.weight")[ENTRIES:]
    assert len(padding) == 54
    assert not padding.any()
    origin = json.loads((tmp_path / "ours" / "origin.json").read_text())
    assert (origin["kind"], origin["dtype"]) == ("huggingface", "fp32" if dtype == torch.float32 else "bf16")
    assert origin["agreement"]["largest_difference"] <= 1e-4
    assert len(HfWeights(original).files) > 1

    written = "fp32" if dtype == torch.float32 else "bf16"
    assert main(["convert", "to-hf", str(tmp_path / "ours"), str(tmp_path / "back"), "--dtype", written]) == 0
    assert main(["checkpoint", "verify", str(tmp_path / "ours")]) == 0
    theirs, back = HfWeights(original), HfWeights(tmp_path / "back")
    assert theirs.shapes == back.shapes
    assert all(torch.equal(theirs.whole(name), back.whole(name)) for name in theirs.shapes)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "back")) is type(AutoModelForCausalLM.from_pretrained(original))
    card = (tmp_path / "back" / "README.md").read_text()
    assert "taken over from theirs (huggingface" in card
    assert json.loads((tmp_path / "back" / "codemix.json").read_text())["origin"]["files"] == origin["files"]

    assert main(["convert", "from-hf", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    again = Checkpoint.open(tmp_path / "again")
    assert again.record.tokenizer_fingerprint == checkpoint.record.tokenizer_fingerprint
    first, second = PieceReader(checkpoint.weights), PieceReader(again.weights)
    assert all(torch.equal(first.whole(key), second.whole(key)) for key in first.keys())  # noqa: SIM118


def run_file(folder: Path, taken: Path, corpus: Path, **changed: Any) -> Path:
    record = Checkpoint.open(taken).record
    raw = {
        "name": "continued",
        "output": str(folder / "run"),
        "tokenizer": str(taken),
        "initial_weights": str(taken),
        "sources": {"code": {"path": str(corpus), "max_epochs": 50}},
        "model": record.model.model_dump(mode="json", exclude_defaults=True),
        "stages": [
            {
                "name": "more",
                "tokens": 256,
                "mixture": {"code": 1},
                "batch_size": 4,
                "sequence_length": 32,
                "learning_rate": {"shape": "constant", "peak": 0.001},
            }
        ],
        "precision": "fp32",
        **changed,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("family", ["llama tied", "qwen2", "starcoder2"])
def test_a_run_begins_with_it_and_is_converted_back(
    tmp_path: Path, family: str, write_model: WriteModel, write_split: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    original = write_model(tmp_path / "theirs", family)
    taken = tmp_path / "ours"
    assert main(["convert", "from-hf", str(original), str(taken)]) == 0
    # what data preparation makes of tokenizer.from_file is the tokenizer of the checkpoint
    tokenizer = Tokenizer(import_tokenizer(taken).model)
    assert tokenizer.fingerprint == Checkpoint.open(taken).record.tokenizer_fingerprint
    for split, texts in (("train", TEXTS[:50]), ("valid", TEXTS[50:])):
        write_split(tmp_path / "code" / split, tokenizer, texts)
    run = run_file(tmp_path, taken, tmp_path / "code")
    assert main(["check", str(run)]) == 0
    assert "initial weights" in capsys.readouterr().out
    assert main(["train", str(run)]) == 0
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first = next(line["loss"] for line in losses if line["kind"] == "step")

    trained = Checkpoint.open(tmp_path / "run")
    assert trained.step == 2
    begun = trained.lineage()["initial_weights"]
    assert (begun["run"], begun["step"], begun["max_positions"]) == ("theirs", 0, 160)
    before, after = PieceReader(taken / "weights"), PieceReader(trained.weights)
    moved = [float((before.whole(key) - after.whole(key)).abs().max()) for key in before.keys()]  # noqa: SIM118
    assert 0 < max(moved) < 0.01, "two steps from these weights, not from others"

    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.config.model_type == family.split()[0]
    assert model.config.max_position_embeddings == 160
    text = AutoTokenizer.from_pretrained(tmp_path / "back")(TEXTS[3], return_tensors="pt")
    with torch.no_grad():
        nats = float(model(**text, labels=text["input_ids"]).loss)
    assert abs(nats - first) < 4, (nats, first)
    assert "went on from the weights of theirs (step 0, transformers)" in (tmp_path / "back" / "README.md").read_text()

    assert main(["train", str(run)]) == 0
    assert "finished already" in capsys.readouterr().out


def test_weights_that_a_run_cannot_begin_with(
    llama: Path, tmp_path: Path, write_model: WriteModel, write_split: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    taken = tmp_path / "ours"
    assert main(["convert", "from-hf", str(llama), str(taken)]) == 0
    tokenizer = Tokenizer.load(taken)
    for split, texts in (("train", TEXTS[:50]), ("valid", TEXTS[50:])):
        write_split(tmp_path / "code" / split, tokenizer, texts)
    run = run_file(tmp_path, taken, tmp_path / "code")
    shape = yaml.safe_load(run.read_text())["model"]

    def refused(*overrides: str) -> str:
        capsys.readouterr()
        assert main(["train", str(run), *overrides]) == 2
        return capsys.readouterr().err

    assert "model.num_layers: 3 now, 2 in the checkpoint" in refused("model.num_layers=3")
    assert "model.rope_base" in refused("model.rope_base=5000")
    assert "no such checkpoint" in refused(f"initial_weights={tmp_path / 'nowhere'}")
    assert main(["train", str(run), "model.init_std=0.1", "output=" + str(tmp_path / "freely")]) == 0
    assert main(["train", str(run)]) == 0
    assert "began with the weights of llama; give initial_weights" in refused("initial_weights=null")
    other = write_model(tmp_path / "other", "llama", initializer_range=0.2)
    assert main(["convert", "from-hf", str(other), str(tmp_path / "others")]) == 0
    assert "began with other weights" in refused(f"initial_weights={tmp_path / 'others'}")
    shutil.rmtree(taken / "weights")
    assert main(["train", str(run), f"tokenizer={taken}"]) == 0  # finished, and nobody needs them any more
    assert shape["num_layers"] == 2


def test_another_tokenizer_with_as_many_entries_is_refused(
    llama: Path,
    tmp_path: Path,
    write_model: WriteModel,
    write_tokenizer: Callable[..., None],
    write_split: Callable[..., None],
    capsys: pytest.CaptureFixture,
) -> None:
    """Every shape agrees, and the ids mean something else: such a run would begin with noise."""
    other = write_model(tmp_path / "other", "llama")
    write_tokenizer(other, texts=[text.replace("spam", "eggs") for text in TEXTS])
    for source, name in ((llama, "ours"), (other, "others")):
        assert main(["convert", "from-hf", str(source), str(tmp_path / name)]) == 0
    mine, theirs = (Checkpoint.open(tmp_path / name).record for name in ("others", "ours"))
    assert (mine.vocab_size, mine.model) == (theirs.vocab_size, theirs.model)
    tokenizer = Tokenizer.load(tmp_path / "others")
    for split, texts in (("train", TEXTS[:50]), ("valid", TEXTS[50:])):
        write_split(tmp_path / "code" / split, tokenizer, texts)
    run = run_file(tmp_path, tmp_path / "others", tmp_path / "code", initial_weights=str(tmp_path / "ours"))
    for verb in ("check", "train"):
        capsys.readouterr()
        assert main([verb, str(run)]) != 0
        said = "".join(capsys.readouterr())
        assert f"initial_weights: {tmp_path / 'ours'}: belongs to another tokenizer" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_run_says_which_shape_it_wants(llama: Path, tmp_path: Path, refusal: Refusal, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "plain")]) == 0
    run = run_file(tmp_path, tmp_path / "plain", tmp_path / "code")
    raw = yaml.safe_load(run.read_text())
    run.write_text(yaml.safe_dump({**raw, "model": {**raw["model"], "vocab_multiple": 64, "init_std": 0.01}}))
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "fitted"), "--config", str(run)]) == 0
    record = Checkpoint.open(tmp_path / "fitted").record
    assert (record.padded_vocab_size, record.model.init_std) == (384, 0.01)
    run.write_text(yaml.safe_dump({**raw, "model": {**raw["model"], "num_layers": 5}}))
    assert "model.num_layers: 5 now, 2" in refusal(capsys, llama, tmp_path / "out", "--config", str(run))


Damage = Callable[[Path], None]


def _perturb(name: str, place: tuple[int, ...], by: float = 0.01) -> Damage:
    def damage(weights: Path) -> None:
        (path,) = weights.glob("*.safetensors")
        reader = PieceReader(weights)
        header = path.read_bytes()[:8]
        start = 8 + int.from_bytes(header, "little")
        content = bytearray(path.read_bytes())
        table = json.loads(content[8:start])
        entry = table[f"param/{name}"]
        shape = reader.keys()[name]
        index = place[0] * (shape[1] if len(shape) > 1 else 1) + (place[1] if len(shape) > 1 else 0)
        offset = start + entry["data_offsets"][0] + 4 * index
        value = torch.frombuffer(content[offset : offset + 4], dtype=torch.float32) + by
        content[offset : offset + 4] = value.numpy().tobytes()
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (_perturb("embedding.word_embeddings.weight", (ENTRIES - 1, 3), 0.5), "behind the embedding"),
        (_perturb("decoder.layers.0.self_attention.linear_qkv.weight", (9, 4), 0.1), "behind layer 0"),
        (_perturb("decoder.layers.1.mlp.linear_fc2.weight", (3, 5), 0.1), "behind layer 1"),
        (_perturb("output_layer.weight", (ENTRIES - 1, 3)), "final norm or the output matrix"),
        (_perturb("decoder.final_layernorm.weight", (3,)), "final norm or the output matrix"),
    ],
    ids=["embedding", "qkv", "fc2", "output", "norm"],
)
def test_weights_that_say_something_else_are_refused(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, damage: Damage, where: str
) -> None:
    original = from_hf.write_weights

    def write(weights: Path, tensors: list) -> dict:
        written = original(weights, tensors)
        damage(weights)
        return written

    monkeypatch.setattr(from_hf, "write_weights", write)
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert f"refused, nothing was written to {tmp_path / 'out'}" in said
    assert "first at position" in said
    assert where in said
    assert not list(tmp_path.glob("*out*"))


def test_a_tokenizer_that_fills_the_vocabulary(copy: Path, tmp_path: Path, write_tokenizer: Callable[..., None]) -> None:
    write_tokenizer(copy, ENTRIES)
    taken, back = tmp_path / "a name, with spaces", tmp_path / "back"
    copy = copy.rename(tmp_path / "llama (1)")
    assert main(["convert", "from-hf", str(copy), str(taken)]) == 0
    tokenizer = Tokenizer.load(taken)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (ENTRIES, tokenizer.end_of_text_id)
    assert Checkpoint.open(taken).record.run == "llama--1-"
    assert main(["convert", "to-hf", str(taken), str(back)]) == 0
    assert AutoTokenizer.from_pretrained(back)(TEXTS[3])["input_ids"] == tokenizer.encode(TEXTS[3]).tolist()


def test_a_sentencepiece_model(copy: Path, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=ENTRIES - 4, model_type="bpe", byte_fallback=True, minloglevel=2
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    (copy / "tokenizer.model").write_bytes(model.getvalue())
    assert main(["convert", "from-hf", str(copy), str(tmp_path / "taken")]) == 0
    tokenizer = Tokenizer.load(tmp_path / "taken")
    assert (tokenizer.vocab_size, tokenizer.file_name) == (ENTRIES, "tokenizer.model")
    assert Tokenizer(import_tokenizer(tmp_path / "taken").model).fingerprint == tokenizer.fingerprint
    assert main(["convert", "to-hf", str(tmp_path / "taken"), str(tmp_path / "back")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "back")(TEXTS[3])["input_ids"] == tokenizer.encode(TEXTS[3]).tolist()


def test_a_full_disk_is_one_line_and_leaves_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(from_hf, "write_weights", refuse)
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"codemix convert: {tmp_path / 'out'}: was not written (No space left on device); make room there, and start anew"
    assert not list(tmp_path.glob("*out*"))


_KILLED = """
import sys, time
from pathlib import Path
from megatron_codemix.checkpoint import from_hf
def wait(*arguments):
    Path(sys.argv[3]).touch()
    time.sleep(600)
from_hf._verify = wait
from_hf.convert_from_hf(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_one(llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(llama), str(tmp_path / "out"), str(tmp_path / "there")]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not (tmp_path / "there").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "there").exists()
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.glob(".out.*")
    assert not (left / "checkpoint.json").exists()
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "out")]) == 0
    assert not list(tmp_path.glob(".out.*")), "the next conversion sweeps it away"
