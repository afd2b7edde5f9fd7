"""One rank of test_context_dist.py, alone or one of two under torchrun: `context_worker.py FOLDER` writes FOLDER/RANK-of-SIZE.json."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from windows import Windows, run_config

from megatron_codemix.config import ParallelConfig, RunConfig
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.kernels import DocumentLayout, DocumentLayouts, document_attention, gather_rows, take_rows
from megatron_codemix.model import transformer_config
from megatron_codemix.model.attention import DocumentAttention
from megatron_codemix.parallel import Topology

VOCAB, LENGTH = 60, 24
RECOMPUTE: dict[str, dict[str, Any]] = {"none": {}, "full": {"granularity": "full"}, "selective": {"granularity": "selective"}}


def batch(seed: int, packed: bool = True) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (2, LENGTH + 1), generator=generator)
    ids = (torch.rand(2, LENGTH, generator=generator) < 0.15).long().cumsum(1)
    mask, weights = (torch.rand(2, LENGTH, generator=generator) < 0.8).long(), torch.rand(2, LENGTH, generator=generator)
    ids = ids if packed else torch.zeros_like(ids)
    return Windows(tokens[:, :-1], tokens[:, 1:], mask, weights, torch.arange(LENGTH).expand(2, -1), ids)


def config_of(dropout: float = 0.0, precision: str = "fp32", **parallel: Any) -> RunConfig:
    model = {"num_layers": 2, "ffn_hidden_size": 48, "init_std": 0.2, "attention_dropout": dropout, "hidden_dropout": dropout}
    return run_config(model, batch_size=4, sequence_length=LENGTH, precision=precision, parallel=parallel)


def figures(topology: Topology, **settings: Any) -> dict[str, Any]:
    """Log-probabilities of the fresh model, three training steps, an evaluation."""
    engine = MegatronEngine(config_of(**settings), VOCAB, topology)
    # 21 positions: no layout divides them; before training, as AdamW's first steps make much of roundings
    logs = engine.log_probabilities(batch(60).tokens[:, :21], batch(60).document_ids[:, :21])
    results = [engine.train_step([batch(2 * step), batch(2 * step + 1, packed=step != 1)], 1e-3) for step in range(3)]
    nats, targets = engine.evaluate([batch(50), batch(51, packed=False)])
    assert engine.evaluate([batch(50), batch(51, packed=False)]) == (nats, targets), "evaluation draws nothing"
    return {
        "losses": [result.loss_sum for result in results],
        "targets": [result.target_tokens for result in results],
        "norms": [result.grad_norm for result in results],
        "nats": nats,
        "evaluated": targets,
        "logs": logs.tolist(),
    }


def check_exchange(group: dist.ProcessGroup) -> None:
    """Forward and backward of gather_rows against what both ranks' losses ask for."""
    size, rank = group.size(), group.rank()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        for dim, shape in ((0, (16, 3, 5)), (1, (3, 16, 5)), (2, (2, 3, 16))):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(dim)).to(dtype)
            wanted = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(9 + r)).to(dtype) for r in range(size)])
            own = take_rows(whole, dim, size, rank).requires_grad_()
            gathered = gather_rows(own, dim, group)
            assert torch.equal(gathered, whole)
            (grad,) = torch.autograd.grad(gathered, own, wanted[rank])
            assert torch.allclose(grad, take_rows(wanted.sum(0), dim, size, rank), rtol=tolerance, atol=tolerance)


def check_attention(group: dist.ProcessGroup) -> None:
    """Queries of this rank on keys of all, with and without torch's recompute, against one process."""
    size, rank = group.size(), group.rank()
    ids = batch(3).document_ids
    whole = [
        torch.randn(LENGTH, 2, heads, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        for seed, heads in ((4, 4), (5, 2), (6, 2))
    ]
    upstream = torch.randn(LENGTH, 2, 24, generator=torch.Generator().manual_seed(8))
    wanted = document_attention(*whole, DocumentLayout(ids))
    grads = torch.autograd.grad(wanted, whole, upstream)

    def own_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = gather_rows(torch.stack((key, value), dim=1), 0, group).unbind(1)
        return document_attention(query, key, value, DocumentLayout(ids, size, rank))

    for is_recomputed in (False, True):
        own = [take_rows(tensor.detach(), 0, size, rank).requires_grad_() for tensor in whole]
        ours = checkpoint(own_rows, *own, use_reentrant=False) if is_recomputed else own_rows(*own)
        assert isinstance(ours, Tensor)
        assert (ours - take_rows(wanted, 0, size, rank)).abs().max() < 1e-6
        ours.backward(take_rows(upstream, 0, size, rank))
        for tensor, grad in zip(own, grads, strict=True):
            assert tensor.grad is not None
            assert (tensor.grad - take_rows(grad, 0, size, rank)).abs().max() < 1e-6


def dropped_twice() -> list[float]:
    """Sums of two calls in training and of two in evaluation, of one set of heads given to every tensor-parallel rank."""
    config = transformer_config(config_of(dropout=0.5, tensor=2))
    core = DocumentAttention(config, 1, None, "self", layouts=DocumentLayouts())  # type: ignore[arg-type]
    heads = [torch.randn(LENGTH, 2, 2, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    before = torch.get_rng_state()
    sums = [float(core.train(training)(*heads, batch(0).document_ids).sum()) for training in (True, True, False, False)]
    assert torch.equal(torch.get_rng_state(), before), "the generator that tensor-parallel ranks have in common is left alone"
    return sums


def alone() -> dict[str, Any]:
    with Topology.join(ParallelConfig(), seed=1) as topology:
        return {"plain": figures(topology), "bf16": figures(topology, precision="bf16"), "dropout": figures(topology, dropout=0.2)}


def one_of_two() -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with Topology.join(ParallelConfig(context=2), seed=1) as topology:
        check_exchange(topology.context.group)
        check_attention(topology.context.group)
        seen["context bf16"] = figures(topology, precision="bf16", context=2)
        for name, recompute in RECOMPUTE.items():
            seen[f"context {name}"] = figures(topology, context=2, recompute=recompute)
            seen[f"context {name} dropout"] = figures(topology, dropout=0.2, context=2, recompute=recompute)
    with Topology.join(ParallelConfig(tensor=2), seed=1) as topology:
        seen["drawn"] = dropped_twice()
        for name, recompute in RECOMPUTE.items():
            seen[f"tensor {name}"] = figures(topology, tensor=2, recompute=recompute)
            seen[f"tensor {name} dropout"] = figures(topology, dropout=0.2, tensor=2, recompute=recompute)
            seen[f"sequence {name} dropout"] = figures(topology, dropout=0.2, tensor=2, sequence=True, recompute=recompute)
    return seen


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    seen = alone() if size == "1" else one_of_two()
    (Path(sys.argv[1]) / f"{rank}-of-{size}.json").write_text(json.dumps(seen))
