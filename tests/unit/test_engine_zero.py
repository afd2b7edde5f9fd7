"""DeepSpeed's engine on one process: updates that are refused, gradients that are not finite, bits that repeat, its package."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import build_engine
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")

VOCAB, LENGTH = 100, 16
KINDS = [(precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]


def batches(step: int) -> list[Any]:
    generator = torch.Generator().manual_seed(step)
    made = []
    for _ in range(2):
        tokens = torch.randint(0, VOCAB, (2, LENGTH + 1), generator=generator)
        ones = torch.ones(2, LENGTH)
        made.append(
            SimpleNamespace(
                tokens=tokens[:, :-1], labels=tokens[:, 1:], target_mask=ones.long(), loss_weights=ones,
                positions=torch.arange(LENGTH).expand(2, -1), document_ids=torch.zeros(2, LENGTH, dtype=torch.int64), prefix=None,
            )
        )  # fmt: skip
    return made


def run_config(precision: str = "fp32", stage: int = 1, **changes: Any) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}
    model |= changes.pop("model", {})
    plan = {
        "name": "only", "tokens": 6400, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    third = {"persistent_elements": 0} if stage == 3 else {}
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": precision,
        "model": model, "stages": [plan], "engine": "deepspeed", "deepspeed": {"zero_stage": stage, "bucket_elements": 2000} | third,
    }  # fmt: skip
    return parse_config(raw | changes, RunConfig, "test")


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


@pytest.fixture
def build(topology):
    return lambda *arguments, **changes: build_engine(run_config(*arguments, **changes), VOCAB, topology)


def everything(engine: Any) -> list[Tensor]:
    """Master weights and moments, and the weights that forward passes use."""
    weights = [getattr(parameter, "ds_tensor", parameter).detach().clone() for parameter in engine.model.parameters()]
    return [*weights, *(piece.data.clone() for piece in engine.pieces())]


def counts(engine: Any) -> set[float]:
    return {held["step"].item() for held in engine._adamw.state.values()}


@pytest.mark.parametrize(("precision", "stage"), KINDS)
def test_a_refused_update_changes_nothing_but_the_counts(build, precision, stage):
    engine, seen = build(precision, stage), []
    engine.train_step(batches(0), 1e-3)
    before = everything(engine)
    refused = engine.train_step(batches(1), 1e-3, accept=lambda result: bool(seen.append(result)))
    assert not refused.updated and len(seen) == 1
    assert (seen[0].loss, seen[0].grad_norm) == (refused.loss, refused.grad_norm) and refused.grad_norm > 0
    assert all(torch.equal(a, b) for a, b in zip(before, everything(engine), strict=True))
    assert engine.step == 2 and counts(engine) == {2.0}
    engine.pass_over()
    assert engine.step == 3 and counts(engine) == {3.0}
    assert engine.train_step(batches(2), 1e-3, accept=lambda result: True).updated
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(engine), strict=True))
    assert engine.step == 4 and counts(engine) == {4.0}


@pytest.mark.parametrize(("precision", "stage"), KINDS)
def test_a_gradient_that_is_not_finite_is_seen_and_never_applied(build, precision, stage):
    engine, seen = build(precision, stage), []
    engine.train_step(batches(0), 1e-3)
    before = everything(engine)
    poisoned = batches(1)
    poisoned[1].loss_weights = torch.full((2, LENGTH), float("nan"))
    result = engine.train_step(poisoned, 1e-3, accept=lambda result: bool(seen.append(result)) or True)
    assert not result.updated and [str(each.grad_norm) for each in seen] == ["nan"]
    assert all(torch.equal(a, b) for a, b in zip(before, everything(engine), strict=True))
    assert engine.step == 2 and counts(engine) == {2.0}
    after = engine.train_step(batches(2), 1e-3)
    assert after.updated and after.grad_norm < 100


@pytest.mark.parametrize(("precision", "stage"), KINDS)
def test_two_runs_give_the_same_bits(build, precision, stage):
    model = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    engines = [build(precision, stage, model=model) for _ in range(2)]
    results = [[engine.train_step(batches(step), 1e-3) for step in range(3)] for engine in engines]
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(*map(everything, engines), strict=True))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_width_transfer_as_the_other_engine(build, stage):
    widths = {"width_transfer": {"base_hidden_size": 16}}
    found = []
    for changes in ({}, {"engine": "megatron", "deepspeed": {}}):
        engine = build("fp32", stage, **widths, **changes)
        found.append([engine.train_step(batches(step), 1e-2).loss for step in range(4)])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] != pytest.approx([build("fp32", stage).train_step(batches(0), 1e-2).loss] * 4, abs=1e-3)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_clipping_as_the_other_engine(build, clip):
    found = []
    for changes in ({}, {"engine": "megatron", "deepspeed": {}}):
        engine = build("fp32", 2, optimizer={"clip_grad_norm": clip}, **changes)
        found.append([engine.train_step(batches(step), 1e-2).loss for step in range(4)])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_another_release_is_refused_in_one_line(build, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.18.0")
    with pytest.raises(UserError, match=r"deepspeed 0\.18\.0 is installed, but only .* is proven here; .*pip install"):
        build()
