"""`codemix convert to-hf`: what it writes is what transformers loads and what was trained, or it does not appear at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_codemix.checkpoint import Checkpoint, average, convert
from megatron_codemix.checkpoint.agreement import TOLERANCE
from megatron_codemix.checkpoint.convert import convert_to_hf
from megatron_codemix.checkpoint.probes import LENGTHS
from megatron_codemix.cli import main
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.importing import import_tokenizer

TEXTS = [f"def f{number}(x):\n    return x + {number}  # {'spam ' * (number % 7)}\n" * (1 + number % 5) for number in range(60)]
MakeRun = Callable[..., Path]


def log_probabilities_of(run: Path, tokens: torch.Tensor) -> torch.Tensor:
    """By the engine that trains, from the checkpoint."""
    checkpoint = Checkpoint.open(run)
    config = checkpoint.config()
    with Topology.join(config.parallel) as topology:
        engine = MegatronEngine(config, checkpoint.record.vocab_size, topology)
        engine.load_pieces(PieceReader(checkpoint.weights), optimizer=False)
        return engine.log_probabilities(tokens)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("groups", [2, 4], ids=["grouped", "full"])
def test_auto_classes_load_it_and_say_what_the_engine_says(
    corpus: Path, tmp_path: Path, tied: bool, groups: int, make_run: MakeRun
) -> None:
    run = make_run(corpus, tmp_path, tied=tied, groups=groups)
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.tie_word_embeddings is tied
    assert model.lm_head.weight.shape[0] == len(tokenizer) == Checkpoint.open(run).record.vocab_size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied

    tokens = torch.tensor([Tokenizer.load(corpus / "tokenizer").encode(TEXTS[55]).tolist()[:80]])
    assert tokenizer(TEXTS[55], add_special_tokens=False)["input_ids"][:80] == tokens[0].tolist()
    with torch.no_grad():
        theirs = model(tokens).logits.log_softmax(-1)
    assert (theirs - log_probabilities_of(run, tokens)).abs().max() < TOLERANCE
    generated = model.generate(**tokenizer("def f", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert generated.shape[1] > len(tokenizer("def f")["input_ids"])
    assert tokenizer.decode(generated[0]).startswith("def f")


def test_a_tokenizer_that_was_taken_over(tmp_path: Path, write_split: Callable[..., None], make_run: MakeRun) -> None:
    theirs = Backend(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end_of_text|>"]))
    theirs.save(str(tmp_path / "theirs.json"))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(import_tokenizer(tmp_path / "theirs.json").model)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    for split, texts in (("train", TEXTS[:50]), ("valid", TEXTS[50:])):
        write_split(tmp_path / "code" / split, tokenizer, texts)
    run = make_run(tmp_path, tmp_path)
    checkpoint = Checkpoint.open(run)
    assert checkpoint.tokenizer.name == "tokenizer.json"
    assert Tokenizer.load(checkpoint.tokenizer).fingerprint == tokenizer.fingerprint == checkpoint.record.tokenizer_fingerprint
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf")]) == 0
    assert Tokenizer.load(tmp_path / "hf").fingerprint == tokenizer.fingerprint
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert loaded(TEXTS[55])["input_ids"] == tokenizer.encode(TEXTS[55]).tolist()
    assert loaded.eos_token == "<|end_of_text|>"


def test_the_files_and_what_they_say(run: Path, tmp_path: Path) -> None:
    step_folder = Checkpoint.open(run).folder
    converted = convert_to_hf(step_folder, tmp_path / "hf", max_shard_bytes=40_000)
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    others = {"README.md", "codemix.json", "config.json", "generation_config.json", "model.safetensors.index.json"}
    tokenizer_files = {"special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert set(names) == {*shards, *others, *tokenizer_files}
    assert len({path.stat().st_mode for path in (tmp_path / "hf").iterdir()}) == 1

    record = json.loads((tmp_path / "hf" / "codemix.json").read_text())
    checkpoint = Checkpoint.open(run)
    assert (record["format_version"], record["run"], record["step"]) == (1, "tiny", 7)
    assert record["ledger"] == checkpoint.ledger()
    assert record["tokenizer_fingerprint"] == checkpoint.record.tokenizer_fingerprint
    assert record["agreement"]["largest_difference"] == converted.agreement.largest <= TOLERANCE
    lengths = [length for length in LENGTHS if length <= 96] + [96]
    assert record["agreement"]["inputs"][: len(lengths)] == [f"{length} random ids" for length in lengths]
    assert any("of document" in origin and "'code'" in origin for origin in record["agreement"]["inputs"])
    source = record["sources"][0]
    train_tokens = json.loads((checkpoint.config().sources["code"].path / "train" / "manifest.json").read_text())["num_tokens"]
    assert (source["windows"], source["tokens"], source["targets"], source["bytes"], source["share"]) == (2, 192, 191, 410, 1.0)
    assert source["epochs"] == pytest.approx(192 / train_tokens)
    assert source["licenses"] == {"MIT": 17, "Apache-2.0": 17}


def test_the_model_card(run: Path, tmp_path: Path) -> None:
    convert_to_hf(run, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    _, matter, text = card.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["codemix", "llama", "code"],
    }
    assert "| code | code | 2 | 192 | 191 | 410 | 100.00 % |" in text
    assert "Apache-2.0 17, MIT 17" in text
    assert "| only | 4,096 | code 1.0 | cosine, 0.01 → 0, 512 tokens of warm-up | 4 | 96 |" in text
    parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(tmp_path / "hf").parameters())
    assert f"language model of {parameters:,} parameters" in text
    assert "Largest difference" in text
    assert "accepted: 0.0001" in text


def test_bf16_is_exact_in_its_weights_and_says_what_it_costs(
    corpus: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, make_run: MakeRun
) -> None:
    assert main(["convert", "to-hf", str(run), str(tmp_path / "rounded"), "--dtype", "bf16"]) == 0
    assert "nats a token away from fp32" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")
    assert model.dtype == torch.bfloat16
    agreement = json.loads((tmp_path / "rounded" / "codemix.json").read_text())["agreement"]
    assert 0 < agreement["bf16_divergence"] < agreement["bf16_tolerance"]
    assert agreement["largest_difference"] <= TOLERANCE

    trained_so = make_run(corpus, tmp_path, precision="bf16")
    convert_to_hf(trained_so, tmp_path / "wide", dtype="fp32")
    convert_to_hf(trained_so, tmp_path / "narrow", dtype="bf16")
    wide, narrow = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32) for name in ("wide", "narrow"))
    assert all(torch.equal(a, b) for a, b in zip(wide.state_dict().values(), narrow.state_dict().values(), strict=True))


def test_without_the_shards_random_ids_serve(corpus: Path, tmp_path: Path, make_run: MakeRun) -> None:
    moved = tmp_path / "corpus"
    shutil.copytree(corpus, moved)
    run = make_run(moved, tmp_path)
    shutil.rmtree(moved)
    convert_to_hf(run, tmp_path / "hf")
    record = json.loads((tmp_path / "hf" / "codemix.json").read_text())
    assert all("random ids" in origin for origin in record["agreement"]["inputs"])
    assert record["sources"][0]["epochs"] is None
    assert "the shards were not at hand" in (tmp_path / "hf" / "README.md").read_text()


def test_the_average_of_checkpoints(
    corpus: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, make_run: MakeRun
) -> None:
    monkeypatch.setattr(average, "_CHUNK_ELEMENTS", 100)  # so that there are several
    others = [make_run(corpus, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf"), "--average", *map(str, others)]) == 0
    assert "converted the average of" in capsys.readouterr().out
    readers = [PieceReader(Checkpoint.open(one).weights) for one in (run, *others)]
    written = load_file(tmp_path / "hf" / "model.safetensors")
    key = "decoder.layers.1.mlp.linear_fc2.weight"
    exact = torch.stack([reader.whole(key).double() for reader in readers]).mean(dim=0)
    assert (written["model.layers.1.mlp.down_proj.weight"].double() - exact).abs().max() <= 2.0**-24 * exact.abs().max()
    record = json.loads((tmp_path / "hf" / "codemix.json").read_text())
    assert [(member["run"], member["step"]) for member in record["average"]] == [("tiny", 7)] * 3
    assert len({member["weights"] for member in record["average"]}) == 3
    assert "the average of 3 checkpoints: tiny step 7, tiny step 7, tiny step 7" in (tmp_path / "hf" / "README.md").read_text()

    step_folder = Checkpoint.open(run).folder
    other_shape = make_run(corpus, tmp_path / "shape", groups=4)
    cases = {
        "is to be averaged twice": step_folder,
        "is a checkpoint of another model (model.num_query_groups: 2 now, 4 in the checkpoint)": other_shape,
        "no such checkpoint": tmp_path / "nowhere",
    }
    for problem, member in cases.items():
        assert main(["convert", "to-hf", str(run), str(tmp_path / "out"), "--average", str(member)]) == 2
        assert problem in capsys.readouterr().err
        assert not list(tmp_path.glob("*out*"))


def test_probes_are_deterministic_and_cover_the_vocabulary(run: Path) -> None:
    checkpoint = Checkpoint.open(run)
    first, again = (convert._open([checkpoint], "fp32", 1).probes for _ in range(2))
    assert [probe.origin for probe in first] == [probe.origin for probe in again]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    ids = np.concatenate([probe.tokens for probe in first])
    assert ids.min() == 0
    assert ids.max() == checkpoint.record.vocab_size - 1
    assert max(probe.tokens.size for probe in first) <= 96
    assert all(dataclasses.asdict(probe)["tokens"].dtype == np.int64 for probe in first)
