"""On a GPU: a refused update leaves the weights to the bit, and a rank's own time is timed on the device."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.engine.own_time import OwnTime
from megatron_codemix.parallel import Topology

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none here")
VOCAB, LENGTH = 100, 64


class Windows:
    """The fields of `batches.Batch` that an engine reads."""

    def __init__(self, step: int) -> None:
        tokens = torch.randint(0, VOCAB, (4, LENGTH + 1), generator=torch.Generator().manual_seed(step))
        self.tokens, self.labels = tokens[:, :-1], tokens[:, 1:]
        self.loss_weights = torch.ones(4, LENGTH)
        self.target_mask = self.loss_weights.long()
        self.positions = torch.arange(LENGTH).expand(4, -1)
        self.document_ids = torch.zeros_like(self.positions)
        self.prefix = None


def run_config() -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "ffn_hidden_size": 256}
    stage = {
        "name": "only", "tokens": 100 * 4 * LENGTH, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "gpu", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": "bf16",
        "model": model, "stages": [stage],
    }  # fmt: skip
    return parse_config(raw, RunConfig, "test")


def test_a_refused_update_changes_nothing_and_training_goes_on():
    with Topology.join(ParallelConfig()) as topology:
        engine = MegatronEngine(run_config(), VOCAB, topology)
        batches: list[Any] = [[Windows(step)] for step in range(4)]
        engine.train_step(batches[0], 1e-3)
        before = [piece.data.clone() for piece in engine.pieces()]
        hook = next(iter(engine.model.parameters())).register_hook(lambda gradient: gradient * math.nan)
        result = engine.train_step(batches[1], 1e-3, lambda found: math.isfinite(found.grad_norm))
        hook.remove()
        assert not result.updated
        assert all(torch.equal(old, piece.data) for old, piece in zip(before, engine.pieces(), strict=True))
        assert engine.train_step(batches[2], 1e-3, lambda found: math.isfinite(found.grad_norm)).updated
        assert 0 < engine.own_seconds < 60


def test_own_time_is_that_of_the_device():
    watch, matrix = OwnTime(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    for _ in range(3):
        matrix @ matrix
    torch.cuda.synchronize()
    begun = time.perf_counter()
    watch.begin()
    for _ in range(50):
        matrix @ matrix
    watch.end()
    queued = time.perf_counter() - begun
    assert watch.seconds > 2 * queued
