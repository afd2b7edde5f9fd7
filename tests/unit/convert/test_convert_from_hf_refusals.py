"""`codemix convert from-hf`: bad input is told in a line, and leaves nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_codemix.cli import main
from megatron_codemix.pieces import PieceReader

Damage = Callable[[Path], None]


def _truncate(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-7])


def _cut_header(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:5])


def _lose_a_file(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _index(change: Callable[[dict[str, str]], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


def _name_outside(mapped: dict[str, str]) -> None:
    mapped["model.norm.weight"] = "../../elsewhere.safetensors"


def _name_absolute(mapped: dict[str, str]) -> None:
    mapped["model.norm.weight"] = "/etc/passwd"


def _name_a_pickle(mapped: dict[str, str]) -> None:
    mapped["model.norm.weight"] = "pytorch_model.bin"


def _wrong_file(mapped: dict[str, str]) -> None:
    files = sorted(set(mapped.values()))
    mapped["model.norm.weight"] = next(name for name in files if name != mapped["model.norm.weight"])


def _no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def _pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _config(**changed: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return damage


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _one_file(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        weights: dict[str, torch.Tensor] = {}
        for path in folder.glob("*.safetensors"):
            weights |= load_file(path)
            path.unlink()
        (folder / "model.safetensors.index.json").unlink()
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


def _quantised(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.int8)


def _lose_a_parameter(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].t().contiguous()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_truncate, "truncated"),
        (_cut_header, "truncated, or no safetensors file"),
        (_lose_a_file, "not there; download or copy what is missing"),
        (_index(_name_outside), "names a file outside its folder"),
        (_index(_name_absolute), "names a file outside its folder"),
        (_index(_name_a_pickle), "which is no safetensors file"),
        (_index(_wrong_file), "which has none"),
        (_no_index, "no model.safetensors.index.json that says what belongs to the model"),
        (_pickled, "reading those can run any code; take the model's safetensors files"),
        (_config(model_type="mixtral"), "model_type: 'mixtral'"),
        (_config(model_type=["llama"]), "model_type: ['llama']"),
        (_config(num_hidden_layers=10**12), "num_hidden_layers: 1,000,000,000,000 is more than any model has"),
        (_config(num_key_value_heads=3), "does not divide num_attention_heads"),
        (_config(auto_map={"AutoModel": "code.Model"}), "auto_map"),
        (_config(num_hidden_layers=3), "not those of its config.json"),
        (_config(tie_word_embeddings=True), "lm_head.weight is another matrix"),
        (_config(vocab_size=400), "not those of its config.json"),
        (_config(hidden_act="relu"), "hidden_act"),
        (_no_tokenizer, "name the model's tokenizer with --tokenizer"),
        (_one_file(_quantised), "not quantised"),
        (_one_file(_lose_a_parameter), "missing ['model.layers.1.mlp.up_proj.weight']"),
        (_one_file(_reshape), "model.layers.1.mlp.up_proj.weight: shape (32, 48)"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "is no index of weights"),
    ],
    ids=lambda value: re.sub(r"\W+", "_", value)[:40] if isinstance(value, str) else None,
)
def test_bad_input_is_told_and_leaves_nothing(
    copy: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture, damage: Damage, problem: str
) -> None:
    damage(copy)
    assert problem in refusal(capsys, copy, tmp_path / "out")


@pytest.mark.parametrize("size", [290, 350])
def test_a_tokenizer_that_does_not_fit(
    copy: Path, tmp_path: Path, refusal: Callable[..., str], write_tokenizer: Callable[..., None], capsys: pytest.CaptureFixture, size: int
) -> None:
    write_tokenizer(copy, size)
    assert "does not fit" in refusal(capsys, copy, tmp_path / "out")


def test_what_is_no_directory_of_a_model(llama: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in refusal(capsys, tmp_path / "empty", tmp_path / "out")
    assert "no such folder" in refusal(capsys, tmp_path / "nowhere", tmp_path / "out")
    capsys.readouterr()
    assert main(["convert", "from-hf", str(llama), str(tmp_path / "empty")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "empty").iterdir()) == []


def test_extras_that_writers_add_are_passed_over(copy: Path, tmp_path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    _one_file(add)(copy)
    _config(tie_word_embeddings=True)(copy)
    assert main(["convert", "from-hf", str(copy), str(tmp_path / "out")]) == 0
    assert "output_layer.weight" not in PieceReader(tmp_path / "out" / "weights").keys()  # noqa: SIM118


SCALINGS = {
    "longrope": {"rope_type": "longrope", "long_factor": [1.0, 2.0], "short_factor": [1.0, 1.0], "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "linear": {"type": "linear", "factor": 2.0},
    "su": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]},
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_scaling_that_our_model_has_not_is_named_in_one_line(
    copy: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture, kind: str, key: str
) -> None:
    path = copy / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("rope_scaling", "rope_parameters")}
    path.write_text(json.dumps({**config, key: SCALINGS[kind]}))
    (line,) = refusal(capsys, copy, tmp_path / "out").splitlines()
    assert f"rope_scaling.rope_type: '{kind}' is neither 'default' nor 'llama3'" in line
    assert str(path) in line


def test_what_is_ours_already(copy: Path, tmp_path: Path, refusal: Callable[..., str], capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "from-hf", str(copy), str(tmp_path / "ours")]) == 0
    (line,) = refusal(capsys, tmp_path / "ours", tmp_path / "out").splitlines()
    assert f"{tmp_path / 'ours'}: is a checkpoint or a run already" in line
