"""Saving and loading: bit-identical continuation, and refusal of what does not fit."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology

VOCAB, LENGTH = 100, 16


@dataclasses.dataclass(frozen=True)
class TinyBatch:
    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor


def batches(step: int) -> list[TinyBatch]:
    generator = torch.Generator().manual_seed(step)
    made = []
    for _ in range(2):
        tokens = torch.randint(0, VOCAB, (2, LENGTH + 1), generator=generator)
        ones = torch.ones(2, LENGTH)
        ids = (torch.rand(2, LENGTH, generator=generator) < 0.2).long().cumsum(1)
        made.append(TinyBatch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, torch.arange(LENGTH).expand(2, -1), ids))
    return made


def run_config(**changes) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}
    model |= changes.pop("model", {})
    stage = {
        "name": "only", "tokens": 6400, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": "fp32",
        "model": model, "stages": [stage],
    }  # fmt: skip
    return parse_config(raw | changes, RunConfig, "test")


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


@pytest.fixture
def engine(topology):
    return lambda vocab_size=VOCAB, **changes: MegatronEngine(run_config(**changes), vocab_size, topology)


def rate(step: int) -> float:
    return 1e-3 * (step + 1)


def train(trained: MegatronEngine, steps: range) -> list:
    return [trained.train_step(batches(step), rate(step)) for step in steps]


def everything(trained: MegatronEngine) -> dict[str, Tensor]:
    """Weights, master weights, moments and step counts, cloned."""
    found = {}
    for name, parameter in trained.model.named_parameters():
        found[name] = parameter.detach().clone()
        main = getattr(parameter, "main_param", parameter)
        found[f"{name} master"] = main.detach().clone()
        found |= {f"{name} {key}": value.clone() for key, value in trained._optimizer.optimizer.state[main].items()}
    return found


def assert_same(ours: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert value.dtype == others[name].dtype, name
        assert torch.equal(value, others[name]), name


def saved(trained: MegatronEngine, folder: Path, **options) -> Path:
    folder.mkdir()
    trained.save_weights(folder, **options)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True])
def test_resume_is_bit_identical(engine, tmp_path, precision, tied):
    changes = {"precision": precision, "model": {"tied_embeddings": tied}}
    uninterrupted = engine(**changes)
    results = train(uninterrupted, range(8))

    interrupted = engine(**changes)
    train(interrupted, range(4))
    folder = saved(interrupted, tmp_path / "weights")
    resumed = engine(**changes, seeds={"init": 5})  # other initial weights: all must come from the checkpoint
    resumed.load_weights(folder)
    assert resumed.step == 4
    assert_same(everything(resumed), everything(interrupted))
    steps = {float(value) for name, value in everything(resumed).items() if name.endswith(" step")}
    assert steps == {4.0}

    assert train(resumed, range(4, 8)) == results[4:]
    assert_same(everything(resumed), everything(uninterrupted))
    assert train(interrupted, range(4, 8)) == results[4:], "saving disturbs nothing"
    assert_same(everything(interrupted), everything(uninterrupted))


def test_resume_into_an_engine_that_has_trained(engine, tmp_path):
    first, second = engine(), engine(seeds={"init": 1})
    train(first, range(3))
    folder = saved(first, tmp_path / "weights")
    train(second, range(10, 15))
    second.load_weights(folder)
    assert train(second, range(3, 6)) == train(first, range(3, 6))
    assert_same(everything(second), everything(first))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoint_of_step_zero(engine, tmp_path, precision):
    fresh, loaded = engine(precision=precision), engine(precision=precision, seeds={"init": 3})
    loaded.load_weights(saved(fresh, tmp_path / "weights"))
    assert loaded.step == 0
    assert train(loaded, range(2)) == train(fresh, range(2))
    assert_same(everything(loaded), everything(fresh))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_weights_alone(engine, tmp_path, precision, with_optimizer):
    trained, other = engine(precision=precision), engine(precision=precision, seeds={"init": 1})
    train(trained, range(2))
    folder = saved(trained, tmp_path / "weights", optimizer=with_optimizer)
    other.load_weights(folder, optimizer=False)
    assert other.step == 0
    for (name, a), b in zip(trained.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b), name
        if precision == "bf16":
            assert torch.equal(b.main_param, b.float()), "master weights follow"
    tokens = batches(0)[0].tokens
    assert torch.equal(other.log_probabilities(tokens), trained.log_probabilities(tokens))
    if not with_optimizer:
        with pytest.raises(UserError, match="optimizer"):
            other.load_weights(folder)


def test_the_config_wins_over_the_checkpoint(engine, tmp_path):
    trained = engine()
    train(trained, range(2))
    other = engine(optimizer={"weight_decay": 0.03, "beta2": 0.9, "epsilon": 1e-5})
    other.load_weights(saved(trained, tmp_path / "weights"))
    groups = {
        (group["wd_mult"], group["weight_decay"], group["betas"], group["eps"], group["fused"]) for group in other._optimizer.param_groups
    }
    assert groups == {(1.0, 0.03, (0.9, 0.9), 1e-5, True), (0.0, 0.0, (0.9, 0.9), 1e-5, True)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 200}, r"embedding\.word_embeddings\.weight' of 128 × 32 where this run has 256 × 32"),
        (
            {"vocab_size": 20, "model": {"vocab_multiple": 32}},
            r"embedding\.word_embeddings\.weight' of 128 × 32 where this run has 32 × 32",
        ),
        ({"model": {"hidden_size": 64}}, r"128 × 32 where this run has 128 × 64"),
        ({"model": {"num_layers": 3}}, r"where this run has"),
        ({"model": {"num_layers": 1}}, r"where this run has"),
        ({"model": {"ffn_hidden_size": 96}}, r"linear_fc1"),
        ({"model": {"num_query_groups": 4}}, r"linear_qkv"),
        ({"model": {"tied_embeddings": True}}, r"output_layer"),
        ({"precision": "bf16"}, r"has no '.*fp32|float32 where this run has torch\.bfloat16"),
    ],
)
@pytest.mark.parametrize("optimizer", [False, True])
def test_a_checkpoint_of_another_model_is_refused(engine, tmp_path, changes, said, optimizer):
    folder = saved(engine(), tmp_path / "weights")
    other = engine(**changes)
    before = everything(other)
    if not optimizer and "precision" in changes:
        other.load_weights(folder, optimizer=False)  # weights alone are cast
        assert other.model.output_layer.weight.dtype == torch.bfloat16
        return
    with pytest.raises(UserError, match=said) as refused:
        other.load_weights(folder, optimizer=optimizer)
    assert "another model" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert_same(everything(other), before)


def test_a_tied_checkpoint_in_an_untied_model_is_refused(engine, tmp_path):
    folder = saved(engine(model={"tied_embeddings": True}), tmp_path / "weights")
    with pytest.raises(UserError, match=r"has no 'output_layer\.weight'"):
        engine().load_weights(folder, optimizer=False)


@pytest.mark.parametrize("damage", ["missing", "empty", "no metadata.json", "no .metadata", "no common.pt", "not json", "cut .metadata"])
def test_a_folder_that_is_no_checkpoint_is_refused(engine, tmp_path, damage):
    folder = tmp_path / "weights"
    if damage == "empty":
        folder.mkdir()
    elif damage != "missing":
        saved(engine(), folder)
        if damage.startswith("no ") and "." in damage:
            (folder / damage.removeprefix("no ")).unlink()
        if damage == "cut .metadata":
            (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:40])
    if damage == "not json":
        (folder / "metadata.json").write_text("{")
    with pytest.raises(UserError, match="no readable megatron-core checkpoint"):
        engine().load_weights(folder)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_an_inventory_that_would_run_code_is_refused(engine, tmp_path):
    folder = saved(engine(), tmp_path / "weights")
    (folder / ".metadata").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(UserError, match="which no checkpoint of ours needs"):
        engine().load_weights(folder)
    assert not (tmp_path / "exploded").exists()


def test_the_same_state_gives_the_same_tensors_on_disk(engine, tmp_path):
    trained = engine()
    train(trained, range(1))
    first, second = (saved(trained, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in sorted(first.iterdir())] == [path.name for path in sorted(second.iterdir())]
    assert (first / "__0_0.distcp").read_bytes() == (second / "__0_0.distcp").read_bytes()
