"""What every process of the launch of test_memory_dist.py runs: layouts one after the other, and what each rank holds under them.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 4 memory_worker.py LAYOUTS.json OUT

LAYOUTS.json: {name: raw run config}. Each rank writes OUT/RANK.json: {name: bytes}.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology

VOCABULARY = 1000


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    found.pop(0, None)
    return found


class Saved:
    """Bytes of the storages that autograd keeps, at most; storages of `known` are not counted.

    Sizes are looked up anew each time: recompute empties storages that autograd still holds.
    """

    def __init__(self, known: dict[int, int]) -> None:
        self.known, self.most = known, 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self._alive[id(storage)] = weakref.ref(storage)
            alive = {key: kept for key, reference in self._alive.items() if (kept := reference()) is not None}
            self._alive = {key: self._alive[key] for key in alive}
            self.most = max(self.most, sum(kept.nbytes() for kept in alive.values()))
        return tensor


def batches(config: RunConfig, data_ranks: int) -> list[Any]:
    stage, windows = config.stages[0], config.micro_batch_size
    tokens = torch.arange(windows * stage.sequence_length).view(windows, -1) % VOCABULARY
    batch: Any = SimpleNamespace(
        tokens=tokens,
        labels=tokens,
        target_mask=torch.ones_like(tokens),
        loss_weights=torch.ones(tokens.shape),
        positions=torch.arange(stage.sequence_length).expand(tokens.shape).contiguous(),
        document_ids=torch.zeros_like(tokens),
        prefix=None,
    )
    return [batch] * (stage.batch_size // (windows * data_ranks))


def measure(raw: dict) -> dict:
    config = parse_config(raw, RunConfig, "here")
    with Topology.join(config.parallel, seed=0) as topology:
        engine = MegatronEngine(config, VOCABULARY, topology)
        replicas = engine._replicas.wrapped
        weights = storages([parameter for replica in replicas for parameter in replica.parameters()])
        gradients = storages([buffer.grad_data for replica in replicas for buffer in replica.buffers])
        state: list[torch.Tensor] = []
        for part in getattr(engine._optimizer, "chained_optimizers", [engine._optimizer]):
            for group in part.optimizer.param_groups:
                state += group["params"]  # the master weights; in a fp32 run the weights themselves
            state += [tensor for entry in part.optimizer.state.values() for name, tensor in entry.items() if name != "step"]
        optimizer = {pointer: size for pointer, size in storages(state).items() if pointer not in weights}
        work = batches(config, topology.data_size)
        inputs = [value for batch in work for value in vars(batch).values()]
        saved = Saved(weights | storages(inputs))
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            engine.train_step(work, learning_rate=1e-3)
        return {
            "pipeline_rank": topology.pipeline.rank,
            "data_ranks": topology.data_size,
            "weights": sum(weights.values()),
            "gradients": sum(gradients.values()),
            "optimizer": sum(optimizer.values()),
            "saved": saved.most,
        }


def main() -> None:
    warnings.filterwarnings("ignore")
    layouts, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    found = {name: measure(raw) for name, raw in layouts.items()}
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
