"""What both processes of test_zero_faults_dist.py run: a loss that is not a number on one rank, and an update that is refused.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 zero_faults_worker.py OUT

Each rank writes OUT/RANK.json: {name: what it saw}.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import layout_worker as layouts

from megatron_codemix.engine import build_engine
from megatron_codemix.parallel import Topology

CASES: list[tuple[int, dict[str, Any]]] = [(1, {}), (2, {}), (3, {}), (1, {"pipeline": 2}), (2, {"tensor": 2})]


def unchanged(engine: Any, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(held, piece.data) for held, piece in zip(before, engine.pieces(), strict=True))


def fault(precision: str, stage: int, parallel: dict[str, Any]) -> dict[str, Any]:
    """Data-parallel rank 1 alone has the fault; where both ranks see the same windows, both have it."""
    config = layouts.run_config({"parallel": parallel, "zero": {"zero_stage": stage}}, layouts.declarations()["model"], precision)
    with Topology.join(config.parallel, timeouts=layouts.PATIENCE) as topology:
        engine: Any = build_engine(config, layouts.VOCAB, topology)
        seen: list[Any] = []
        layouts.train(engine, 1)
        before = [piece.data.clone() for piece in engine.pieces()]
        share = layouts.own_share(layouts.windows(1), engine)
        if topology.data.size == 1 or topology.data_rank == 1:
            share.loss_weights = torch.full_like(share.loss_weights, float("nan"))
        poisoned = engine.train_step(share.micro_batches(2), 1e-3, accept=lambda result: bool(seen.append(result)) or True)
        held = unchanged(engine, before)
        work = layouts.own_share(layouts.windows(2), engine).micro_batches(2)
        refused = engine.train_step(work, 1e-3, accept=lambda result: False)
        held = held and unchanged(engine, before)
        return {
            "told": [str(result.grad_norm) for result in seen], "updated": [poisoned.updated, refused.updated], "unchanged": held,
            "norm": refused.grad_norm, "step": engine.step,
        }  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {
        f"{precision}, stage {stage}, {parallel}": fault(precision, stage, parallel)
        for precision in ("fp32", "bf16")
        for stage, parallel in CASES
    }
    (Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(results))
