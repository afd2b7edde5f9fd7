"""Weights that are not those of config.json, or no numbers: refused in one line, whatever the task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from eval.directory import open_directory
from eval.engine import Decoding, Engine, Prompt, Settings, open_engine
from eval.engine.loading import load_model
from megatron_codemix import cli
from megatron_codemix.errors import UserError

CPU = Settings()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the stored weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(open_directory(folder), CPU)
    (line,) = caught.value.problems
    assert str(folder) in line
    return line


def test_weights_that_config_json_has_no_place_for_are_refused(make_model):
    folder = make_model(seed=5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    line = refusal(folder)
    assert "9 weights have no place in its config.json (model.layers.1.input_layernorm.weight …)" in line
    biased = rewrite(make_model(seed=5), lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    assert "1 weight has no place in its config.json (model.layers.0.self_attn.q_proj.bias)" in refusal(biased)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.cos_cached", "model.position_ids"]
)
def test_buffers_of_older_files_are_accepted(make_model, name):
    folder = rewrite(make_model(seed=5), lambda weights: weights.update({name: torch.ones(4)}))
    assert load_model(open_directory(folder), CPU).config.num_hidden_layers == 2


def test_masks_of_older_gpt2_files_are_accepted_and_other_names_are_not(make_model):
    folder = make_model(seed=5)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    model.save_pretrained(folder)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(folder, lambda weights: weights.update(masks))
    assert load_model(open_directory(folder), CPU).config.n_layer == 1
    rewrite(folder, lambda weights: weights.update({"transformer.h.0.attn.c_extra.bias": torch.ones(4)}))
    assert "1 weight has no place" in refusal(folder)


def test_a_stored_output_layer_of_a_tied_model_must_be_the_embedding(make_model):
    folder = make_model(seed=6, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    model = load_model(open_directory(folder), CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    rewrite(folder, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"] + 1}))
    assert "lm_head.weight differs from model.embed_tokens.weight, to which config.json ties it" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(make_model, value):
    folder = rewrite(make_model(seed=5), lambda weights: weights["model.norm.weight"][3:4].fill_(value))
    assert "model.norm.weight holds values that are not finite" in refusal(folder)


def test_a_damaged_file_is_named(make_model):
    folder = make_model(seed=5)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"{folder / 'model.safetensors'}: damaged or truncated" in refusal(folder)


def test_a_file_is_no_model(make_model):
    folder = make_model(seed=5)
    with pytest.raises(UserError, match="is a file; give the folder that holds it"):
        open_directory(folder / "model.safetensors")


def test_scores_that_are_no_numbers_end_in_one_line_and_finished_tasks_are_kept(tmp_path, make_model, write_rows, capsys, monkeypatch):
    folder = make_model(seed=5)
    good, bad = write_rows("good.jsonl", [{"text": "the and"}]), write_rows("bad.jsonl", [{"text": "overflow"}])
    score = Engine.score

    def overflowing(self, continuations, name=""):
        """Every weight is finite, the logits are not."""
        if name.startswith("bad"):
            with torch.no_grad():
                self.model.model.lm_head.weight.fill_(torch.finfo(torch.float32).max)
        return score(self, continuations, name)

    monkeypatch.setattr(Engine, "score", overflowing)
    out = tmp_path / "out"
    arguments = ["eval", folder, "--output", out, "--bits-per-byte", f"good={good}", f"bad={bad}"]
    code = cli.main([*map(str, arguments), "--device", "cpu", "--processes", "1"])
    said = capsys.readouterr().err
    assert code == 2, said
    (line,) = [line for line in said.splitlines() if "not finite" in line]
    assert line.startswith(f"codemix eval: bad: {folder}: ") and "Traceback" not in said
    assert list(json.loads((out / "unfinished.json").read_text())["tasks"]) == ["good"]


def test_completions_are_not_written_from_no_numbers(make_model):
    with open_engine(make_model(seed=5), CPU) as engine:
        with torch.no_grad():
            engine.model.model.lm_head.weight.fill_(float("nan"))
        with pytest.raises(UserError, match=r"say: .* not finite"):
            engine.generate([Prompt("the", "1")], Decoding(max_new_tokens=2), "say")


def test_what_decides_answers_is_part_of_a_models_identity(make_model, tmp_path):
    """Kept answers of one chat template, or of one choice among equally named weights, are not those of another."""
    folder = make_model(seed=5)
    before = open_directory(folder).definition_sha256
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    chat = open_directory(folder).definition_sha256
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}}))
    assert len({before, chat, open_directory(folder).definition_sha256}) == 3


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ({"weight_map": {"lm_head.weight": "../model.safetensors"}}, "names a file outside its folder"),
        ({"weight_map": {"lm_head.weight": "/tmp/model.safetensors"}}, "names a file outside its folder"),
        ({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}, "or no safetensors file ('pytorch_model.bin')"),
        ({"weight_map": {"lm_head.weight": 3}}, "is no index of weights"),
        ([], "is no index of weights"),
    ],
)
def test_weights_that_are_not_hashed_are_not_loaded(make_model, index, problem):
    folder = make_model(seed=5)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problem in refusal(folder)


def test_an_adapter_is_no_model(make_model):
    folder = make_model(seed=5)
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter of PEFT" in refusal(folder)
