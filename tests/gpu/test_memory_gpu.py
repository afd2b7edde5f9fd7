"""The planner's estimate against what CUDA's allocator counts, on one GPU."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology
from megatron_codemix.train.memory import estimate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none here")

VOCAB, ROWS, LENGTH, MICRO_BATCH = 8100, 8192, 1024, 4


@dataclasses.dataclass(frozen=True)
class RandomBatch:
    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def one_document_each() -> RandomBatch:
    tokens = torch.randint(0, VOCAB, (MICRO_BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    ones, positions = torch.ones(MICRO_BATCH, LENGTH), torch.arange(LENGTH).expand(MICRO_BATCH, -1)
    return RandomBatch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, positions, torch.zeros_like(positions))


def run_config(precision: str, granularity: str) -> RunConfig:
    model = {"num_layers": 8, "hidden_size": 768, "num_attention_heads": 12, "num_query_groups": 4, "ffn_hidden_size": 2048}
    stage = {
        "name": "only", "tokens": 1e6, "mixture": {"a": 1}, "batch_size": 2 * MICRO_BATCH, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": precision,
        "micro_batch_size": MICRO_BATCH, "model": model, "stages": [stage], "document_masking": False,
        "parallel": {"recompute": {"granularity": granularity}},
    }  # fmt: skip
    return parse_config(raw, RunConfig, "test")


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("granularity", ["none", "full"])
def test_states_and_peak_are_what_the_allocator_counts(topology: Topology, precision: str, granularity: str) -> None:
    config = run_config(precision, granularity)
    told = estimate(config, ROWS)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = MegatronEngine(config, VOCAB, topology)
    states = torch.cuda.memory_allocated() - before
    assert states == pytest.approx(told.states, rel=0.1), f"{states:,} bytes of states, {told.states:,} told"

    batches = [one_document_each(), one_document_each()]
    engine.train_step(batches, 1e-3)
    torch.cuda.reset_peak_memory_stats()
    engine.train_step(batches, 1e-3)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak == pytest.approx(told.total, rel=0.1), f"{peak:,} bytes at the peak, {told.total:,} told"
