"""`codemix convert to-hf`: a wrong export does not appear, and bad input is a line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_codemix.checkpoint import Checkpoint, convert, hf
from megatron_codemix.checkpoint.convert import ConversionRefused, convert_to_hf
from megatron_codemix.cli import main

Tensors = Iterator[tuple[str, torch.Tensor]]


def _perturb_one_weight(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        if name == "model.layers.1.self_attn.o_proj.weight":
            tensor = tensor.clone()
            tensor[3, 5] += 0.01
        yield name, tensor


def _swap_queries_and_keys_of_a_group(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        if name == "model.layers.0.self_attn.q_proj.weight":
            tensor = tensor.view(4, 8, 32)[[0, 2, 1, 3]].reshape(32, 32)  # as if the fused matrix were not cut by groups
        yield name, tensor


def _interleave_rotary_halves(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.view(-1, 2, 4, 32).transpose(1, 2).reshape(tensor.shape)
        yield name, tensor


def _swap_gate_and_up(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        if "gate_proj" in name:
            up_name, up = next(tensors)
            yield name, up
            yield up_name, tensor
        else:
            yield name, tensor


def _shift_the_output_by_a_row(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        yield name, tensor.roll(1, 0) if name == "lm_head.weight" else tensor


def _not_a_number(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        yield name, torch.full_like(tensor, float("nan")) if name == "model.norm.weight" else tensor


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (_perturb_one_weight, "behind layer 1"),
        (_swap_queries_and_keys_of_a_group, "behind layer 0"),
        (_interleave_rotary_halves, "behind layer 0"),
        (_swap_gate_and_up, "behind layer 0"),
        (_shift_the_output_by_a_row, "final norm or the output matrix"),
        (_not_a_number, "final norm or the output matrix"),
    ],
)
def test_a_wrong_export_is_refused_and_leaves_nothing(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    damage: Callable[[Tensors], Tensors],
    where: str,
) -> None:
    original = convert.stream_to_hf
    monkeypatch.setattr(convert, "stream_to_hf", lambda *arguments: damage(original(*arguments)))
    out = tmp_path / "hf"
    assert main(["convert", "to-hf", str(run), str(out)]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"codemix convert: refused, nothing was written to {out}")
    assert "first at position" in message
    assert "vocabulary entry" in message
    assert where in message
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConversionRefused):
        convert_to_hf(run, out, dtype="bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_config_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = convert.write_config

    def other_base(folder: Path, model, *rest) -> None:
        original(folder, model.model_copy(update={"rope_base": 10_000.0}), *rest)

    monkeypatch.setattr(convert, "write_config", other_base)
    with pytest.raises(ConversionRefused, match="behind layer 0"):
        convert_to_hf(run, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parameter_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((hf, "to_hf"), (convert, "stream_to_hf")):
        original = getattr(module, name)
        without = lambda *arguments, original=original: (pair for pair in original(*arguments) if pair[0] != "model.norm.weight")  # noqa: E731
        monkeypatch.setattr(module, name, without)
    with pytest.raises(ConversionRefused, match=r"does not take the written weights.*model\.norm\.weight"):
        convert_to_hf(run, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_bf16_that_costs_too_much_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "BF16_TOLERANCE", 1e-12)
    with pytest.raises(ConversionRefused, match="convert with --dtype fp32"):
        convert_to_hf(run, tmp_path / "hf", dtype="bf16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(convert, "write_weights", refuse)
    assert main(["convert", "to-hf", str(run), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"codemix convert: {tmp_path / 'out'}: was not written (No space left on device); make room there, and start anew"
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))


def test_bad_input_is_one_line_and_exit_code_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "there").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(Checkpoint.open(run).folder, damaged)
    weights = max((damaged / "weights").iterdir(), key=os.path.getsize)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    cases = {
        "exists already": [str(run), str(tmp_path / "there")],
        "no such checkpoint": [str(tmp_path / "nothing"), str(tmp_path / "out")],
        "altered": [str(damaged), str(tmp_path / "out")],
        "'40 bananas' is not a size": [str(run), str(tmp_path / "out"), "--max-shard-size", "40 bananas"],
        "invalid choice: 'fp8'": [str(run), str(tmp_path / "out"), "--dtype", "fp8"],
        "arguments are required: OUT": [str(run)],
    }
    for problem, arguments in cases.items():
        assert main(["convert", "to-hf", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert [line for line in lines if problem in line], (problem, lines)
        assert not (tmp_path / "out").exists()
    assert main(["convert", "to-what", str(run), str(tmp_path / "out")]) == 2
    assert main(["convert"]) == 2


def test_a_model_of_others_is_no_checkpoint(run: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Each is told what makes it one, wherever a checkpoint is wanted."""
    megatron = tmp_path / "megatron"
    megatron.mkdir()
    (megatron / "latest_checkpointed_iteration.txt").write_text("7")
    for folder, verb in ((llama, "from-hf"), (megatron, "from-megatron")):
        for arguments in ([folder, tmp_path / "out"], [run, tmp_path / "out", "--average", folder]):
            capsys.readouterr()
            assert main(["convert", "to-hf", *map(str, arguments)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{folder}: a " in line
            assert f"'codemix convert {verb} {folder} NEW'" in line
            assert not (tmp_path / "out").exists()
