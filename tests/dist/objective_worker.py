"""One rank of test_objectives_dist.py, alone or one of two under torchrun: `objective_worker.py FOLDER` writes FOLDER/RANK-of-SIZE.json.

FOLDER/tokenizer.model is the tokenizer. All processes make the same windows of an objective with everything in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megatron_codemix.batches import Batch, WindowObjective, assemble
from megatron_codemix.config import Objective, ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import Engine, build_engine
from megatron_codemix.parallel import Topology
from megatron_codemix.tokenizer import Tokenizer

LENGTH, WINDOWS, STEPS = 48, 4, 4
TEXTS = ["def add(left, right):\n    return left + right\n", "Prose, as long as a line may be.\n", "for name in names:\n    print(name)\n"]
OBJECTIVE = {
    "fim": {"rate": {"code": 0.8}},
    "prefix": {"rate": 0.7},
    "corruption": {"rate": 0.1, "mean_span": 2},
    "loss_weights": {"text": 0.5, "docstring": 0},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor": 2},
    "tensor, sequence, full recompute": {"tensor": 2, "sequence": True, "recompute": {"granularity": "full"}},
    "pipeline": {"pipeline": 2},
    "context": {"context": 2},
    "context, selective recompute": {"context": 2, "recompute": {"granularity": "selective"}},
    "data": {},
}
SLIDING = {"tensor": {"tensor": 2}, "context": {"context": 2}}
ZERO: dict[str, tuple[int, dict[str, Any]]] = {
    "ZeRO-1": (1, {}),
    "ZeRO-1, pipeline": (1, {"pipeline": 2}),
    "ZeRO-2": (2, {}),
    "ZeRO-2, tensor": (2, {"tensor": 2}),
    "ZeRO-3": (3, {}),
}
"""Of the other engine: stage and layout."""


def batch(tokenizer: Tokenizer, step: int) -> Batch:
    """Four windows, half of them of the source text."""
    generator = np.random.default_rng(step)
    stream = np.concatenate(
        [np.append(tokenizer.encode(TEXTS[number]), tokenizer.end_of_text_id) for number in generator.integers(0, 3, WINDOWS * LENGTH)]
    )
    windows = np.stack([stream[index * LENGTH : index * LENGTH + LENGTH + 1] for index in range(WINDOWS)]).astype(np.uint16)
    (made,) = assemble(
        windows,
        generator.integers(0, 4, windows.shape).astype(np.uint8),
        end_of_text_id=tokenizer.end_of_text_id,
        token_num_bytes=tokenizer.token_num_bytes.astype(np.uint8),
        source_ids=np.array([0, 1] * (WINDOWS // 2)),
        window_ids=step * WINDOWS + np.arange(WINDOWS),
        epochs=np.zeros(WINDOWS, np.int64),
        micro_batch_size=WINDOWS,
        objective=WindowObjective(Objective.model_validate(OBJECTIVE), tokenizer, ("code", "text"), 0),
    )
    return made


def run_config(layout: dict[str, Any], sliding_window: int | None, zero_stage: int = 0) -> RunConfig:
    model = {
        "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 48, "init_std": 0.2,
        "sliding_window": sliding_window,
    }  # fmt: skip
    stage = {
        "name": "only", "tokens": STEPS * WINDOWS * LENGTH, "mixture": {"code": 0.5, "text": 0.5}, "batch_size": WINDOWS,
        "sequence_length": LENGTH, "learning_rate": {"shape": "constant", "peak": 1e-3}, "objective": OBJECTIVE,
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {name: {"path": "unused"} for name in ("code", "text")},
        "precision": "fp32", "model": model, "stages": [stage], "parallel": layout, "micro_batch_size": 2,
    }  # fmt: skip
    if zero_stage:
        raw |= {"engine": "deepspeed", "deepspeed": {"zero_stage": zero_stage}}
    return parse_config(raw, RunConfig, "test")


def figures(
    topology: Topology, tokenizer: Tokenizer, layout: dict[str, Any], sliding_window: int | None = None, zero_stage: int = 0
) -> dict[str, Any]:
    """Log-probabilities of each label, what each token changes, and four training steps."""
    config = run_config(layout, sliding_window, zero_stage)
    engine = build_engine(config, tokenizer.vocab_size, topology)
    first = batch(tokenizer, 0)
    logs = engine.log_probabilities(first.tokens, first.document_ids, first.prefix)
    found: dict[str, Any] = {"logs": logs.gather(-1, first.labels[..., None]).flatten().tolist()}
    found["influence"] = influence(engine, tokenizer.vocab_size, first)
    results = []
    for step in range(STEPS):
        made = batch(tokenizer, step)
        share = WINDOWS // topology.data_size
        own = made.rows(topology.data_rank * share, (topology.data_rank + 1) * share)
        micro = min(config.micro_batch_size, share)
        results.append(engine.train_step([own.rows(start, start + micro) for start in range(0, share, micro)], 1e-3))
    found |= {"losses": [result.loss for result in results], "norms": [result.grad_norm for result in results]}
    return found | {"targets": [result.target_tokens for result in results]}


def influence(engine: Engine, vocab_size: int, made: Batch) -> list[list[list[int]]]:
    """Of each window and each of its positions: the positions whose log-probabilities change with the token there."""
    found = []
    for row in range(WINDOWS):
        tokens = made.tokens[row].repeat(LENGTH + 1, 1)
        tokens[range(1, LENGTH + 1), range(LENGTH)] = (tokens[0] + 1) % vocab_size
        fields: list[Tensor] = [field[row].repeat(LENGTH + 1, 1) for field in (made.document_ids, made.prefix)]
        logs = engine.log_probabilities(tokens, *fields)
        changed = (logs[1:] - logs[0]).abs().amax(-1) > 1e-4
        found.append([position.nonzero().flatten().tolist() for position in changed])
    return found


def work(folder: Path) -> dict[str, Any]:
    tokenizer, world_size = Tokenizer.load(folder / "tokenizer.model"), int(os.environ.get("WORLD_SIZE", "1"))
    found: dict[str, Any] = {}
    jobs: dict[str, tuple[Any, ...]] = {"alone": ({}, None), "sliding alone": ({}, 7)}
    if world_size > 1:
        jobs = {name: (layout, None) for name, layout in LAYOUTS.items()} | {f"sliding {name}": (SLIDING[name], 7) for name in SLIDING}
        if importlib.util.find_spec("deepspeed"):
            jobs |= {name: (layout, None, stage) for name, (stage, layout) in ZERO.items()}
    for name, (layout, *how) in jobs.items():
        with Topology.join(ParallelConfig.model_validate(layout), seed=1) as topology:
            found[name] = figures(topology, tokenizer, layout, *how)
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    (Path(sys.argv[1]) / f"{rank}-of-{size}.json").write_text(json.dumps(work(Path(sys.argv[1]))))
