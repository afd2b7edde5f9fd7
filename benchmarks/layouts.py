"""Tokens per second of one model under two-process layouts, alternating in one launch.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/layouts.py [--layouts DP2 TP2 …] [--rounds 5]

Each round trains some steps under every layout, in turn, in the same two processes; the first layout is what the
others are compared with, round by round. The target is TP2 at 0.5 × DP2 or more, for a model of 30 million parameters
on two cores: tensor parallelism exchanges activations twice a layer and direction, through gloo on a CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology

LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {},
    "DP2 + distributed optimizer": {"distributed_optimizer": True},
    "TP2": {"tensor": 2},
    "TP2 + sequence": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "CP2": {"context": 2},
}
MODEL = {"num_layers": 8, "hidden_size": 512, "num_attention_heads": 8, "ffn_hidden_size": 1408, "tied_embeddings": True}
VOCABULARY = 8192
MICRO_BATCH, BATCH, LENGTH = 4, 8, 256


@dataclass(frozen=True)
class RandomBatch:
    """The fields of `batches.Batch` that an engine reads."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def run_config(parallel: dict[str, Any]) -> RunConfig:
    """Only the model, the layout and the batch matter here."""
    stage = {
        "name": "bench",
        "tokens": 1e6,
        "mixture": {"random": 1},
        "batch_size": BATCH,
        "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": 1e-3},
    }
    raw = {
        "name": "bench",
        "output": "unused",
        "tokenizer": "unused",
        "sources": {"random": {"path": "unused"}},
        "precision": "fp32",
        "micro_batch_size": MICRO_BATCH,
        "model": MODEL,
        "stages": [stage],
        "parallel": parallel,
    }
    return parse_config(raw, RunConfig, "benchmark")


def micro_batches(step: int, topology: Topology) -> list[RandomBatch]:
    """This rank's share of a global batch of random tokens: one document a window."""
    generator = torch.Generator().manual_seed(step)
    windows = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    ones, positions = torch.ones(MICRO_BATCH, LENGTH), torch.arange(LENGTH).expand(MICRO_BATCH, -1)
    parts = windows.split(MICRO_BATCH)[topology.data_rank :: topology.data_size]
    return [RandomBatch(part[:, :-1], part[:, 1:], ones.long(), ones, positions, torch.zeros_like(positions)) for part in parts]


def seconds_per_step(name: str, warmup: int, steps: int) -> tuple[float, float]:
    """Median wall seconds of a step under a layout, and the loss of the last one."""
    config = run_config(LAYOUTS[name])
    seconds, loss = [], 0.0
    with Topology.join(config.parallel) as topology:
        engine = MegatronEngine(config, VOCABULARY, topology)
        for step in range(warmup + steps):
            batches = micro_batches(step, topology)
            topology.barrier()
            begun = time.perf_counter()
            loss = engine.train_step(batches, 1e-3).loss
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[warmup:]), loss


def main() -> None:
    """Alternate the layouts and print medians of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["DP2", "TP2"], metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in options.layouts}
    for _ in range(options.rounds):
        losses = {}
        for name in options.layouts:
            seconds, losses[name] = seconds_per_step(name, options.warmup, options.steps)
            taken[name].append(seconds)
        gap = max(losses.values()) - min(losses.values())
        assert gap < 1e-3, f"the layouts did not do the same work: losses {losses}"
    if int(os.environ.get("RANK", "0")):
        return
    first = options.layouts[0]
    parameters = run_config({}).model.num_parameters(VOCABULARY)
    shape = f"{parameters:,} parameters, {BATCH} × {LENGTH} tokens a step"
    print(f"{shape}, {torch.get_num_threads()} thread(s) a process, torch {torch.__version__}")
    for name, seconds in taken.items():
        ratios = [base / mine for base, mine in zip(taken[first], seconds, strict=True)]
        print(f"{name}: {BATCH * LENGTH / statistics.median(seconds):,.0f} tokens/s, {statistics.median(ratios):.2f} × {first}")


if __name__ == "__main__":
    main()
