"""Two real context-parallel processes against one: exchanges, attention, training with recompute and dropout. One launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_COMMON = """
import dataclasses, json, os, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.kernels import DocumentLayout, document_attention, gather_rows, take_rows
from megatron_codemix.parallel import Topology

VOCAB, LENGTH = 60, 24


@dataclasses.dataclass(frozen=True)
class TinyBatch:
    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor


def batch(seed: int, packed: bool = True) -> TinyBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (2, LENGTH + 1), generator=generator)
    ids = (torch.rand(2, LENGTH, generator=generator) < 0.15).long().cumsum(1)
    mask, weights = (torch.rand(2, LENGTH, generator=generator) < 0.8).long(), torch.rand(2, LENGTH, generator=generator)
    ids = ids if packed else torch.zeros_like(ids)
    return TinyBatch(tokens[:, :-1], tokens[:, 1:], mask, weights, torch.arange(LENGTH).expand(2, -1), ids)


def config(dropout: float = 0.0, precision: str = "fp32", **parallel) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 48,
             "init_std": 0.2, "attention_dropout": dropout}
    stage = {"name": "only", "tokens": 960, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
             "learning_rate": {"shape": "constant", "peak": 1e-3}}
    return parse_config({"name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}},
                         "precision": precision, "model": model, "stages": [stage], "parallel": parallel}, RunConfig, "test")


RECOMPUTE = {"none": {}, "full": {"granularity": "full"}, "selective": {"granularity": "selective"}}


def figures(topology: Topology, **settings) -> dict:
    run = config(**settings)
    engine = MegatronEngine(run, VOCAB, topology)
    # 21 positions: no layout divides them; before training, as AdamW's first steps make much of roundings
    logs = engine.log_probabilities(batch(60).tokens[:, :21], batch(60).document_ids[:, :21])
    results = [engine.train_step([batch(2 * step), batch(2 * step + 1, packed=step != 1)], 1e-3) for step in range(3)]
    nats, targets = engine.evaluate([batch(50), batch(51, packed=False)])
    again = engine.evaluate([batch(50), batch(51, packed=False)])
    assert again == (nats, targets), "evaluation draws nothing"
    return {"losses": [r.loss_sum for r in results], "targets": [r.target_tokens for r in results],
            "norms": [r.grad_norm for r in results], "nats": nats, "evaluated": targets, "logs": logs.tolist()}
"""

_WORKER = (
    _COMMON
    + """
def exchange(group) -> None:
    \"\"\"Forward and backward of gather_rows against what both ranks' losses ask for.\"\"\"
    size, rank = group.size(), group.rank()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for dim, shape in ((0, (16, 3, 5)), (1, (3, 16, 5)), (2, (2, 3, 16))):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(dim)).to(dtype)
            wanted = [torch.randn(shape, generator=torch.Generator().manual_seed(9 + r)).to(dtype) for r in range(size)]
            own = take_rows(whole, dim, size, rank).requires_grad_()
            gathered = gather_rows(own, dim, group)
            assert torch.equal(gathered, whole)
            (grad,) = torch.autograd.grad(gathered, own, wanted[rank])
            assert torch.allclose(grad, take_rows(sum(wanted), dim, size, rank), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def attention(group) -> None:
    \"\"\"Queries of this rank on keys of all, with and without torch's recompute, against one process.\"\"\"
    size, rank = group.size(), group.rank()
    ids = batch(3).document_ids
    whole = [
        torch.randn(LENGTH, 2, heads, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        for seed, heads in ((4, 4), (5, 2), (6, 2))
    ]
    upstream = torch.randn(LENGTH, 2, 24, generator=torch.Generator().manual_seed(8))
    wanted = document_attention(*whole, DocumentLayout(ids))
    grads = torch.autograd.grad(wanted, whole, upstream)

    def own_rows(query, key, value):
        key, value = gather_rows(torch.stack((key, value), dim=1), 0, group).unbind(1)
        return document_attention(query, key, value, DocumentLayout(ids, size, rank))

    for compute in (own_rows, lambda *own: checkpoint(own_rows, *own, use_reentrant=False)):
        own = [take_rows(tensor.detach(), 0, size, rank).requires_grad_() for tensor in whole]
        ours = compute(*own)
        assert (ours - take_rows(wanted, 0, size, rank)).abs().max() < 1e-6
        ours.backward(take_rows(upstream, 0, size, rank))
        for tensor, grad in zip(own, grads, strict=True):
            assert (tensor.grad - take_rows(grad, 0, size, rank)).abs().max() < 1e-6


seen = {}
for axis in ("context", "tensor"):
    with Topology.join(ParallelConfig(**{axis: 2}), seed=1) as topology:
        if axis == "context":
            exchange(topology.context.group)
            attention(topology.context.group)
        for name, recompute in RECOMPUTE.items():
            seen[f"{axis} {name}"] = figures(topology, **{axis: 2}, recompute=recompute)
            seen[f"{axis} {name} dropout"] = figures(topology, dropout=0.2, **{axis: 2}, recompute=recompute)
        if axis == "context":
            seen["context bf16"] = figures(topology, precision="bf16", context=2)
        else:
            for name, recompute in RECOMPUTE.items():
                seen[f"sequence {name} dropout"] = figures(topology, dropout=0.2, tensor=2, sequence=True, recompute=recompute)
(Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""
)

_ALONE = (
    _COMMON
    + """
with Topology.join(ParallelConfig(), seed=1) as topology:
    seen = {"plain": figures(topology), "bf16": figures(topology, precision="bf16"), "dropout": figures(topology, dropout=0.2)}
(Path(sys.argv[1]) / "alone.json").write_text(json.dumps(seen))
"""
)


def _run(code: str, folder: Path, launcher: list[str]) -> None:
    script = folder / "worker.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)], capture_output=True, text=True, env=environment, timeout=500
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process and two processes computed, by layout; both ranks of a layout must say the same."""
    folder = tmp_path_factory.mktemp("context")
    _run(_ALONE, folder, [])
    _run(_WORKER, folder, ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])
    alone, *ranks = (json.loads((folder / f"{name}.json").read_text()) for name in ("alone", 0, 1))
    assert ranks[0] == ranks[1]
    return alone | ranks[0]


def _differ(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Largest difference of losses per target, of relative gradient norms, of nats per target and of log-probabilities."""
    assert first["targets"] == second["targets"]
    assert first["evaluated"] == second["evaluated"]
    losses = max(abs(a - b) / n for a, b, n in zip(first["losses"], second["losses"], first["targets"], strict=True))
    norms = max(abs(a - b) / a for a, b in zip(first["norms"], second["norms"], strict=True))
    nats = abs(first["nats"] - second["nats"]) / first["evaluated"]
    logs = (torch.tensor(first["logs"]) - torch.tensor(second["logs"])).abs().max().item()
    return max(losses, norms, nats, logs)


@pytest.mark.parametrize("axis", ["context", "tensor"])
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_two_ranks_train_what_one_does(figures, axis, recompute):
    assert _differ(figures["plain"], figures[f"{axis} {recompute}"]) < 1e-5


def test_bf16_is_near(figures):
    assert _differ(figures["bf16"], figures["context bf16"]) < 0.1


@pytest.mark.parametrize("axis", ["context", "tensor", "sequence"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recompute_drops_the_same_weights(figures, axis, recompute):
    kept, computed_again = figures[f"{axis} none dropout"], figures[f"{axis} {recompute} dropout"]
    assert _differ(kept, computed_again) < 1e-6


@pytest.mark.parametrize("axis", ["context", "tensor", "sequence"])
def test_dropout_is_drawn_in_training_and_not_alike_on_all_ranks(figures, axis):
    """Dropping 1 weight of 5 changes the loss; each rank draws for its own rows or heads, so no layout repeats another."""
    dropped = figures[f"{axis} none dropout"]
    for name in ("plain", "dropout"):
        assert abs(dropped["losses"][0] - figures[name]["losses"][0]) > 1e-3
