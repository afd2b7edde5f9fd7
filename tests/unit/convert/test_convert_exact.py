"""Conversions refuse every damage: of each kind of parameter, in any row, of a window by one position, of values that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from megatron_codemix.checkpoint import Checkpoint, convert, from_hf
from megatron_codemix.checkpoint.exact import require_written
from megatron_codemix.checkpoint.probes import Probe, narrowing
from megatron_codemix.checkpoint.transformers_model import ConversionRefused
from megatron_codemix.cli import main

ENTRIES = 1200
"""More than the probes' tokens: there are rows of the embedding that none of them reads."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 4096},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 4096},
    "qwen3": {"head_dim": 6, "tie_word_embeddings": True},
    "starcoder2": {"sliding_window": 4096},
}


def write_model(folder: Path, family: str, **changed: Any) -> Path:
    """A directory of transformers, of weights so large that each of them shows."""
    shape = {
        "vocab_size": ENTRIES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 8192, "initializer_range": 0.3, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "rope_theta": 10.0,
    }  # fmt: skip
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **FAMILIES[family], **changed}), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [f"def f{n}(x{n * 7}): return {n * n} + {n**3}  # {chr(97 + n % 26)}{chr(97 + n % 7)}{n % 11}" for n in range(2000)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=ENTRIES - 1, initial_alphabet=alphabet, special_tokens=["<|end|>"]))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)
    return folder


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """What to-hf writes is changed in its file."""
    original = convert.write_weights

    def write(folder: Path, *arguments: Any) -> None:
        original(folder, *arguments)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(convert, "write_weights", write)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_element_of_every_kind_of_parameter_is_seen(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "theirs", family)
    from_hf.convert_from_hf(tmp_path / "theirs", tmp_path / "ours")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "theirs" / "model.safetensors").items()}
    kinds = [name for name in shapes if "layers.1." not in name]
    assert len(kinds) == {"llama": 19, "mistral": 12, "qwen2": 15, "qwen3": 13, "starcoder2": 20}[family]

    def damaged(name: str, row: int, by: float) -> str:
        with monkeypatch.context() as patched:
            changing(patched, lambda weights: weights[name].view(len(weights[name]), -1)[row, 3 % weights[name][0].numel()].add_(by))
            with pytest.raises(ConversionRefused) as refusal:
                convert.convert_to_hf(tmp_path / "ours", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
        return str(refusal.value)

    # by the log-probabilities alone: what was written is not compared with what was to be
    with monkeypatch.context() as patched:
        patched.setattr(convert, "require_written", lambda *arguments: None)
        assert {name for name in kinds if "first at position" not in damaged(name, shapes[name][0] - 1, 0.3)} == set()
    tokens = {int(token) for probe in convert._open([Checkpoint.open(tmp_path / "ours")], "fp32", 1).probes for token in probe.tokens}
    unread = next(row for row in range(ENTRIES) if row not in tokens)
    if family != "qwen3":  # which multiplies with it, too
        assert "'model.embed_tokens.weight' in the written files is not what was to be written" in damaged(
            "model.embed_tokens.weight", unread, 0.3
        )
    assert "is not what was to be written" in damaged("model.layers.0.input_layernorm.weight", 2, 1e-7)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "starcoder2"])
def test_a_long_window_that_is_off_by_one_is_refused(tmp_path: Path, family: str, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "theirs", family)
    with monkeypatch.context() as patched:
        read = from_hf.model_config_from_hf
        patched.setattr(from_hf, "model_config_from_hf", lambda *given: read(*given).model_copy(update={"sliding_window": 4096 + by}))
        with pytest.raises(ConversionRefused, match=r"first at position 1[0-9]+ .*behind layer 0"):
            from_hf.convert_from_hf(tmp_path / "theirs", tmp_path / "ours")
    from_hf.convert_from_hf(tmp_path / "theirs", tmp_path / "ours")
    write = convert.write_config

    def wrong(folder: Path, model: Any, *rest: Any) -> None:
        write(folder, model.model_copy(update={"sliding_window": model.sliding_window + by}), *rest)

    with monkeypatch.context() as patched:
        patched.setattr(convert, "write_config", wrong)
        with pytest.raises(ConversionRefused, match=r"first at position 1[0-9]+ .*behind layer 0"):
            convert.convert_to_hf(tmp_path / "ours", tmp_path / "out")
    convert.convert_to_hf(tmp_path / "ours", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 4096


def test_which_windows_are_made_shorter() -> None:
    probes = [Probe("", torch.zeros(length, dtype=torch.int64).numpy(), True) for length in (1, 64)]
    assert narrowing(None, probes) == narrowing(9, probes) == narrowing(63, probes) == 0
    assert narrowing(64, probes) == 32
    assert narrowing(4096, probes) == 4096 - 32
    assert narrowing(7, probes[:1]) == 6


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, name: str, value: float, capsys: pytest.CaptureFixture) -> None:
    folder = write_model(tmp_path / "theirs", "llama")
    weights = load_file(folder / "model.safetensors")
    weights[name][7, 3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "out")]) == 2
    assert "holds values that are no finite numbers" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_what_is_read_back() -> None:
    whole = torch.arange(10.0).view(5, 2)
    blocks = lambda: iter([("a", whole[:2]), ("a", whole[2:]), ("b", whole[:1])])  # noqa: E731
    require_written(blocks(), lambda name, start, stop: whole[start:stop], 12)
    with pytest.raises(ConversionRefused, match="'a' in the written"):
        require_written(blocks(), lambda name, start, stop: whole[start:stop] + (start == 2), 12)
    with pytest.raises(ConversionRefused, match="'a' in the written"):
        require_written(blocks(), lambda name, start, stop: whole[start:stop].bfloat16(), 12)
    with pytest.raises(ConversionRefused, match="'b' holds values"):
        require_written(iter([("b", whole / 0)]), lambda name, start, stop: whole / 0, 10)
