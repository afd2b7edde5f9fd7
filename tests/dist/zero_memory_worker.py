"""What every process of the launch of test_zero_memory_dist.py runs: each stage of ZeRO, and the bytes of all tensors that are alive.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 zero_memory_worker.py OUT

Rank r writes OUT/WORLD-r.json: {name: {"measured": bytes, "predicted": bytes, "parameters": elements}}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import build_engine
from megatron_codemix.parallel import Topology
from megatron_codemix.train.zero import zero_states

VOCABULARY, ROWS = 1000, 1024
LAYOUTS: dict[str, dict[str, Any]] = {
    **{
        f"{precision}, stage {stage}": {"precision": precision, "deepspeed": {"zero_stage": stage}}
        for precision in ("fp32", "bf16")
        for stage in (1, 2, 3)
    },
    "bf16, stage 3, small weights whole": {"deepspeed": {"zero_stage": 3, "persistent_elements": 20_000}},
    "bf16, stage 1, PP2": {"deepspeed": {"zero_stage": 1}, "parallel": {"pipeline": 2}},
    "bf16, stage 2, TP2": {"deepspeed": {"zero_stage": 2}, "parallel": {"tensor": 2}},
}


def config_of(layout: dict[str, Any]) -> RunConfig:
    """A small bucket, and no weights kept whole beyond their use, so that the states are what counts."""
    stage = {
        "name": "s", "tokens": 65536, "mixture": {"a": 1}, "batch_size": 8, "sequence_length": 32,
        "learning_rate": {"shape": "constant", "peak": 0.1},
    }  # fmt: skip
    model = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 352}
    raw = {
        "name": "m", "output": "o", "tokenizer": "t", "sources": {"a": {"path": "a"}}, "model": model, "stages": [stage],
        "micro_batch_size": 2, "engine": "deepspeed", **layout,
    }  # fmt: skip
    third = {"persistent_elements": 0, "live_elements": 1} if layout["deepspeed"]["zero_stage"] == 3 else {}
    raw["deepspeed"] = {"bucket_elements": 1000} | third | layout["deepspeed"]
    return parse_config(raw, RunConfig, "here")


def alive() -> dict[int, int]:
    """Storage of every tensor and gradient that Python can reach → bytes."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def batches(config: RunConfig, data_ranks: int) -> list[Any]:
    shape = (config.micro_batch_size, config.stages[0].sequence_length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    batch: Any = SimpleNamespace(
        tokens=tokens, labels=tokens, target_mask=torch.ones_like(tokens), loss_weights=torch.ones(shape),
        positions=torch.arange(shape[1]).expand(shape), document_ids=tokens, prefix=None,
    )  # fmt: skip
    return [batch] * (8 // (config.micro_batch_size * data_ranks))


def measure(layout: dict[str, Any]) -> dict[str, int]:
    """When the gradients of a step have come, and before it is made."""
    config = config_of(layout)
    with Topology.join(config.parallel) as topology:
        before = alive()
        engine: Any = build_engine(config, VOCABULARY, topology)
        work = batches(config, topology.data_size)
        engine.train_step(work, 1e-3)
        engine._replicas.train()
        engine._replicas.accumulate(work, 1.0)
        measured = sum(size for place, size in alive().items() if place not in before)
        states = zero_states(config, ROWS, pipeline_rank=topology.pipeline.rank, data_ranks=topology.data_size)
    return {
        "measured": measured,
        "predicted": states.weights + states.gradients + states.optimizer,
        "parameters": states.parameters,
        "ranks": topology.data_size,
    }


def main(out: Path) -> None:
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    results = {name: measure(layout) for name, layout in LAYOUTS.items()}
    (out / f"{world}-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
