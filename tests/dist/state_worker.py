"""What every process of the launch in test_state_dist.py runs: training state through many layouts, and each layout to itself.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 4 state_worker.py OUT

Rank 0 writes OUT/results.json; a world of one process is rank 0 alone, while the others wait for the next layout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from windows import Windows, run_config

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import build_engine, state
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader, form, write_neutral, write_pieces

VOCAB, LENGTH, WINDOWS = 100, 16, 8
STEPS = 2
"""Between one layout and the next."""
OVERLAPPED = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def zero(stage: int, **parallel: Any) -> dict[str, Any]:
    """A layout under the other engine, with nothing too small to be split."""
    return {"zero": {"zero_stage": stage} | ({"persistent_elements": 0} if stage == 3 else {}), **parallel}


CHAIN: list[tuple[str, dict[str, Any]]] = [
    ("one process", {}),
    ("tensor 2 with sequence, data 2", {"tensor": 2, "sequence": True}),
    ("pipeline 2 of 2 virtual stages, data 2", {"pipeline": 2, "virtual_stages": 2}),
    ("data 4, distributed optimizer, overlapped", OVERLAPPED),
    ("context 2, tensor 2", {"context": 2, "tensor": 2}),
    ("tensor 2, pipeline 2, distributed optimizer", {"tensor": 2, "pipeline": 2, "distributed_optimizer": True}),
    ("pipeline 4, uneven", {"pipeline": 4, "layers_per_stage": [0, 2, 1, 1]}),
    ("context 2, data 2, distributed optimizer", {"context": 2, "distributed_optimizer": True}),
    ("one process again", {}),
]  # fmt: skip
ENGINES: list[tuple[str, dict[str, Any]]] = [
    ("one process", {}),
    ("ZeRO-1, tensor 2, pipeline 2", zero(1, tensor=2, pipeline=2)),
    ("data 4, distributed optimizer, overlapped", OVERLAPPED),
    ("ZeRO-3, data 4", zero(3)),
    ("tensor 2 with sequence, data 2", {"tensor": 2, "sequence": True}),
    ("ZeRO-2, context 2, data 2", zero(2, context=2)),
    ("ZeRO-3, tensor 2, data 2", zero(3, tensor=2)),
    ("pipeline 2 of 2 virtual stages, data 2", {"pipeline": 2, "virtual_stages": 2}),
    ("ZeRO-1, one process", zero(1)),
]  # fmt: skip
"""As CHAIN, with both engines in turn."""
SAME: list[tuple[str, str, dict[str, Any]]] = [
    *(("fp32", name, parallel) for name, parallel in CHAIN[1:-1]),
    ("bf16", "data 4", {}),
    ("bf16", "data 4, distributed optimizer", {"distributed_optimizer": True}),
    ("bf16", "tensor 2 with sequence, data 2, distributed optimizer", {"tensor": 2, "sequence": True, "distributed_optimizer": True}),
    ("bf16", "pipeline 2 of 2 virtual stages, data 2, distributed optimizer, overlapped",
     {"pipeline": 2, "virtual_stages": 2, **OVERLAPPED}),
    *(
        (precision, f"ZeRO-{stage}", zero(stage, **parallel))
        for stage, parallel in ((1, {"pipeline": 2}), (2, {"tensor": 2}), (3, {}))
        for precision in ("fp32", "bf16")
        if HAS_DEEPSPEED
    ),
]  # fmt: skip


def batch(step: int) -> Windows:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCAB, (WINDOWS, LENGTH + 1), generator=generator)
    mask = (torch.rand(WINDOWS, LENGTH, generator=generator) < 0.8).long()
    ids = (torch.rand(WINDOWS, LENGTH, generator=generator) < 0.2).long().cumsum(1)
    return Windows(tokens[:, :-1], tokens[:, 1:], mask, torch.ones(WINDOWS, LENGTH), torch.arange(LENGTH).expand(WINDOWS, -1), ids)


def config_of(layout: dict[str, Any], precision: str = "fp32", dropout: float = 0.0, seed: int = 0) -> RunConfig:
    model = {"num_layers": 4, "tied_embeddings": True, "hidden_dropout": dropout, "attention_dropout": dropout}
    parallel = {key: value for key, value in layout.items() if key != "zero"}
    sections = {"precision": precision, "parallel": parallel, "micro_batch_size": 1, "seeds": {"init": seed}}
    if "zero" in layout:
        sections |= {"engine": "deepspeed", "deepspeed": layout["zero"]}
    return run_config(model, batch_size=WINDOWS, sequence_length=LENGTH, **sections)


def train(engine: Any, steps: int) -> list[float]:
    """Losses of the next steps; each data-parallel rank takes its share of each global batch."""
    losses = []
    for _ in range(steps):
        size = WINDOWS // engine.topology.data_size
        first = engine.topology.data_rank * size
        batches = batch(engine.step).rows(first, first + size).micro_batches(1)
        losses.append(engine.train_step(batches, 1e-3 * (1 + engine.step % 3)).loss)
    return losses


def save(engine: Any, folder: Path) -> dict[str, Path]:
    """Write both forms, each rank its part."""
    topology = engine.topology
    folders = {name: folder / name for name in ("routine", "neutral")}
    for made in folders.values():
        made.mkdir(parents=True, exist_ok=True)
    topology.barrier()
    name = f"rank-{topology.rank:05d}-of-{topology.world_size:05d}.safetensors"
    write_pieces(folders["routine"] / name, engine.pieces(), engine.step)
    topology.barrier()
    reader = PieceReader(folders["routine"])
    write_neutral(reader, folders["neutral"], topology.rank, topology.world_size)
    topology.barrier()
    assert form(reader) == "routine" and form(PieceReader(folders["neutral"])) == "neutral"
    return folders


@contextmanager
def world(config: RunConfig, alone: bool):
    """Join the layout; None on a rank that has no part in a world of one."""
    if not alone:
        with Topology.join(config.parallel) as topology:
            yield topology
    elif os.environ["RANK"] != "0":
        yield None
    else:
        kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
        try:
            with Topology.join(config.parallel) as topology:
                yield topology
        finally:
            os.environ.update(kept)


def chain(out: Path, links: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One training handed from layout to layout, and the same without interruption."""
    losses: dict[str, list[float]] = {}
    saved: dict[str, Path] = {}
    for number, (name, parallel) in enumerate(links):
        config = config_of(parallel, seed=number)  # other initial weights each time: all must come from the checkpoint
        alone = "one process" in name
        with world(config, alone) as topology:
            if topology:
                engine = build_engine(config, VOCAB, topology)
                if number:
                    reader = PieceReader((out / str(number - 1)) / ("neutral" if number % 2 else "routine"))
                    engine.load_pieces(reader)
                losses[name] = train(engine, STEPS)
                saved = save(engine, out / str(number))
    config = config_of({})
    with world(config, alone=True) as topology:
        if topology:
            engine = build_engine(config, VOCAB, topology)
            whole = train(engine, STEPS * len(links))
            final = PieceReader(save(engine, out / "uninterrupted")["neutral"])
            last = PieceReader(saved["neutral"])
            parameters = {key: float((final.whole(key) - last.whole(key)).abs().max()) for key in final.keys()}  # noqa: SIM118
            return {"losses": losses, "uninterrupted": whole, "largest weight difference": max(parameters.values())}
    return {}


def everything(engine: Any) -> list[Tensor]:
    """Every weight, master weight, moment and count of updates of this rank, cloned."""
    found = [parameter.detach().clone() for chunk in engine.chunks for parameter in chunk.parameters()]
    if engine.config.engine == "deepspeed":
        found += [parameter.ds_tensor.detach().clone() for parameter in engine.chunks[0].parameters() if hasattr(parameter, "ds_tensor")]
        optimizers = [engine._adamw]
    else:
        optimizers = [chained.optimizer for chained in engine._optimizer.chained_optimizers]
    for optimizer in optimizers:
        for main, held in optimizer.state.items():
            found += [main.detach().clone(), *(value.clone() for value in held.values())]
    return found


def same(out: Path, precision: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """Whether training resumed from each form, with dropout, is bit for bit the training that went on, on every rank."""
    config = config_of(parallel, precision, dropout=0.1)
    results = {}
    with Topology.join(config.parallel) as topology:
        engine = build_engine(config, VOCAB, topology)
        before = train(engine, STEPS)
        folders = save(engine, out)
        losses = train(engine, STEPS)
        went_on = everything(engine)
        for name, folder in folders.items():
            resumed = build_engine(config_of(parallel, precision, dropout=0.1, seed=9), VOCAB, topology)
            if name == "neutral":
                train(resumed, 1)  # an engine that has trained has weights to gather, and moments to lose
            resumed.load_pieces(PieceReader(folder))
            again = train(resumed, STEPS)
            mine = everything(resumed)
            equal = len(mine) == len(went_on) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(mine, went_on))
            verdict = torch.tensor([float(equal and again == losses)])
            dist.all_reduce(verdict, dist.ReduceOp.MIN)
            results[name] = {"equal": bool(verdict.item()), "losses": again, "tensors": len(mine)}
        return {"before": before, "losses": losses, **results}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    state._LEAST_SHARE = 100  # so that these small tensors too are shared among ranks
    results: dict[str, Any] = {"chain": chain(out / "chain", CHAIN), "same": {}}
    if HAS_DEEPSPEED:
        results["engines"] = chain(out / "engines", ENGINES)
    for number, (precision, name, parallel) in enumerate(SAME):
        results["same"][f"{precision}: {name}"] = same(out / f"same-{number}", precision, parallel)
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
