"""What both processes of the launch in test_guards_dist.py run: a NaN on one rank, under several layouts.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 guard_worker.py FOLDER

Rank r writes FOLDER/rank-r.json: layout, rank and place of the fault → what it saw.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from windows import Windows, run_config

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import MegatronEngine, StepResult
from megatron_codemix.engine.chunks import Replicas
from megatron_codemix.parallel import Topology

VOCAB, LENGTH, WINDOWS = 100, 32, 4
LAYOUTS = {
    "DP2": {},
    "DP2, distributed optimizer": {"distributed_optimizer": True},
    "DP2, overlapped": {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "TP2": {"tensor": 2},
    "TP2, sequence parallel": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "CP2": {"context": 2},
}
_run = Replicas.run


def batch(step: int) -> Windows:
    tokens = torch.randint(0, VOCAB, (WINDOWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    ones = torch.ones(WINDOWS, LENGTH)
    positions = torch.arange(LENGTH).expand(WINDOWS, -1)
    return Windows(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, positions, torch.zeros_like(positions))


def state(engine: MegatronEngine) -> str:
    """Weights and moments of this rank, to the bit."""
    engine._replicas.gather_weights()  # with overlap they come in only with the next forward pass
    digest = hashlib.sha256()
    for tensor in [*(parameter for chunk in engine.chunks for parameter in chunk.parameters()), *(piece.data for piece in engine.pieces())]:
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def step(engine: MegatronEngine, accept: Any = None) -> StepResult:
    size = WINDOWS // engine.topology.data_size
    first = engine.topology.data_rank * size
    batches: Any = batch(engine.step).rows(first, first + size).micro_batches(1)
    return engine.train_step(batches, 1e-2, accept)


def spoilt(place: str) -> Any:
    """`Replicas.run` that leaves a NaN in this rank's gradient: before it is reduced over data-parallel ranks, or behind that."""

    def run(self: Replicas, forward: Any, batches: Any, *, mode: str) -> Any:
        parameter = next(parameter for parameter in self.chunks[-1].parameters() if parameter.dim() == 2)
        hook = parameter.register_hook(lambda gradient: gradient * math.nan) if place == "before" else None
        records = _run(self, forward, batches, mode=mode)
        if hook is not None:
            hook.remove()
        else:
            for each in self.chunks[-1].parameters():  # of the distributed optimizer, each rank reads some of them alone
                gradient: Any = each.main_grad  # type: ignore[attr-defined] - megatron-core's
                gradient.view(-1)[0] = math.nan
        return records

    return run


def trial(config: RunConfig, topology: Topology, faulty: int, place: str) -> dict[str, Any]:
    """A NaN in the third step, which is refused, against an engine that passes that step over."""
    engine, other = (MegatronEngine(config, VOCAB, topology) for _ in range(2))
    for _ in range(2):
        step(engine, lambda result: True)
        step(other)
    before, asked = state(engine), []

    def accept(result: StepResult) -> bool:
        asked.append((math.isfinite(result.loss), math.isfinite(result.grad_norm)))
        return all(asked[-1])

    if topology.rank == faulty:
        Replicas.run = spoilt(place)
    refused = step(engine, accept)
    Replicas.run = _run
    found = {
        "accepting changes nothing": before == state(other),
        "asked": asked,
        "updated": refused.updated,
        "untouched": before == state(engine),
        "step": engine.step,
    }
    other.pass_over()
    pairs = [(step(engine, accept), step(other)) for _ in range(2)]
    return found | {
        "goes on": [one == another and one.updated for one, another in pairs],
        "same end": state(engine) == state(other),
        "own seconds": engine.own_seconds,
    }


def work(folder: Path) -> None:
    results = {}
    for precision in ("fp32", "bf16"):
        for name, parallel in LAYOUTS.items():
            config = run_config({"num_layers": 2}, batch_size=WINDOWS, sequence_length=LENGTH, precision=precision, parallel=parallel)
            with Topology.join(config.parallel) as topology:
                for faulty in range(2):
                    for place in ("before", "behind"):
                        results[f"{precision}, {name}, rank {faulty}, {place}"] = trial(config, topology, faulty, place)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
