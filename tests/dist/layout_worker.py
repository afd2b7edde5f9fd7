"""What every process of a launch runs: the layouts of layouts.yaml for its number of processes, one after the other.

    OMP_NUM_THREADS=1 python layout_worker.py OUT                                                    (one process: the references)
    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 layout_worker.py OUT [PATTERN of "section: name"]

Rank 0 writes OUT/ranks-N.json: {section: {name: what the layout gave}}; the state after a first step lies in the folder named there.
layout_table.py starts the launches and compares.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from windows import Windows

from megatron_codemix.config import RunConfig, TimeoutConfig, parse_config
from megatron_codemix.engine import build_engine, chunks
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import write_pieces

HERE = Path(__file__).parent
VOCAB, LENGTH, WINDOWS = 300, 32, 8
STEPS, SHORT_FROM, DROPOUT_STEPS = 20, 15, 4
"""Of the steps, those from SHORT_FROM on have twice as many windows of half the length, as a later stage of a run may."""
LEARNING_RATE = 1e-3
SECTIONS = {"layouts": "fp32", "families": "fp32", "deepspeed": "fp32", "bf16": "bf16", "deepspeed_bf16": "bf16"}
"""Of layouts.yaml, with the precision of each."""
PATIENCE = TimeoutConfig(join_seconds=120.0, hang_seconds=120.0)


def windows(key: int, number: int = WINDOWS, length: int = LENGTH) -> Windows:
    """Learnable tokens (next = 3x + 1, a tenth of it noise), several documents per window, labels without a target, unequal weights.

    The first window has no target at all; the last two are of one document, so that some micro-batches have nothing to mask.
    """
    generator = torch.Generator().manual_seed(key)
    columns = [torch.randint(0, VOCAB, (number,), generator=generator)]
    for _ in range(length):
        noise = torch.rand(number, generator=generator) < 0.1
        columns.append(torch.where(noise, torch.randint(0, VOCAB, (number,), generator=generator), (columns[-1] * 3 + 1) % VOCAB))
    tokens = torch.stack(columns, 1)
    documents = (torch.rand(number, length, generator=generator) < 0.1).long()
    documents[:, 0] = 0
    documents[-2:] = 0
    targets = torch.rand(number, length, generator=generator) < 0.8
    targets[0] = False
    return Windows(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        target_mask=targets.to(torch.uint8),
        loss_weights=torch.rand(number, length, generator=generator),
        positions=torch.arange(length).expand(number, -1),
        document_ids=documents.cumsum(1),
        prefix=torch.zeros(number, length, dtype=torch.uint8),
    )


def run_config(layout: dict[str, Any], model: dict[str, Any], precision: str = "fp32") -> RunConfig:
    """A run of this layout; the corpus is never looked for."""
    stage = {
        "name": "only", "tokens": STEPS * WINDOWS * LENGTH, "mixture": {"a": 1}, "batch_size": WINDOWS, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": LEARNING_RATE},
    }  # fmt: skip
    raw = {
        "name": "layout", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": precision,
        "model": model | layout.get("model", {}), "stages": [stage], "parallel": layout["parallel"],
        "micro_batch_size": layout.get("micro_batch_size", 2), "seeds": {"init": 5, "dropout": 7}, **layout.get("run", {}),
    }  # fmt: skip
    if "zero" in layout:  # small enough for several buckets; no weight is too small to be split
        small = {"bucket_elements": 6000} | ({"persistent_elements": 0} if layout["zero"]["zero_stage"] == 3 else {})
        raw |= {"engine": "deepspeed", "deepspeed": small | layout["zero"]}
    return parse_config(raw, RunConfig, "layouts.yaml")


def train(engine: Any, steps: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of steps; each data-parallel rank takes its share of each global batch."""
    results = []
    for step in range(engine.step, engine.step + steps):
        batch = windows(step) if step < SHORT_FROM else windows(step, 2 * WINDOWS, LENGTH // 2)
        share = own_share(batch, engine)
        results.append(engine.train_step(share.micro_batches(engine.config.micro_batch_size), LEARNING_RATE))
    return [result.loss for result in results], [result.grad_norm for result in results]


def own_share(batch: Windows, engine: Any) -> Windows:
    topology = engine.topology
    size = len(batch.tokens) // topology.data_size
    return batch.rows(topology.data_rank * size, (topology.data_rank + 1) * size)


def evaluate(engine: Any) -> float:
    """Mean nats over 6 windows, dealt unevenly over data-parallel ranks, in micro-batches of 2 and a last one of 1."""
    batch = windows(1000, 6)
    shares = {1: [0, 6], 2: [0, 5, 6], 4: [0, 3, 5, 6, 6]}[engine.topology.data_size]
    own = batch.rows(*shares[engine.topology.data_rank : engine.topology.data_rank + 2])
    nats, targets = engine.evaluate(own.micro_batches(2))
    assert targets == int(batch.target_mask.sum())
    return nats / targets


def documents_alone(engine: Any) -> tuple[list[float], float | None]:
    """Log-probabilities of the labels of a packed window, and their largest difference from each document's alone, over all tokens.

    None in place of the difference for a run whose documents see each other.
    """
    batch = windows(2000).rows(0, 2)
    packed = engine.log_probabilities(batch.tokens, batch.document_ids)
    assert packed.shape == (2, LENGTH, VOCAB)
    largest = 0.0
    for row in range(2):
        lengths = torch.bincount(batch.document_ids[row]).tolist()
        assert len(lengths) > 2, "the window means to hold several documents"
        start = 0
        for length in lengths:
            alone = engine.log_probabilities(batch.tokens[row : row + 1, start : start + length])
            largest = max(largest, (alone[0] - packed[row, start : start + length]).abs().max().item())
            start += length
    if not engine.config.document_masking:
        assert largest > 0.01, "documents do not see what precedes them"
    return packed.gather(-1, batch.labels[..., None]).flatten().tolist(), largest if engine.config.document_masking else None


def replicas_differ(engine: Any) -> float:
    """Largest difference between copies of one weight: over data and context ranks, over tensor ranks where they do not cut it (norms,
    biases of what they sum), tied matrices over stages."""
    engine.evaluate([])  # overlapped gathers come in
    topology, largest = engine.topology, 0.0
    for chunk in engine.chunks:
        for parameter in chunk.parameters():
            is_whole = parameter.numel() > 0  # in ZeRO-3 each data-parallel rank has its part of it
            held = parameter if is_whole else parameter.ds_tensor
            if is_whole:
                largest = max(largest, spread(held, topology.data_and_context.group))
            if not getattr(parameter, "tensor_model_parallel", False):
                largest = max(largest, spread(held, topology.tensor.group))
    if engine.config.model.tied_embeddings and topology.pipeline.size > 1:
        size, rank = topology.pipeline.size, topology.pipeline.rank
        chunk = engine.chunks[-1 if rank == size - 1 else 0]
        rows = chunk.shared_embedding_or_output_weight() if rank in (0, size - 1) else None
        parts: list[Any] = [None] * size
        dist.all_gather_object(parts, None if rows is None else rows.detach(), group=topology.pipeline.group)
        largest = max(largest, (parts[0] - parts[-1]).abs().max().item())
    return largest


def spread(tensor: Tensor, group: dist.ProcessGroup) -> float:
    extremes = torch.stack((tensor.detach().float(), -tensor.detach().float()))
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    return extremes.sum(0).abs().max().item()


def full_run(config: RunConfig, topology: Topology, folder: Path) -> dict[str, Any]:
    """Twenty steps with evaluations before, among and after them, and everything that a layout must agree on.

    `folder` gets the training state after the first step, whose first moments are the first step's gradients.
    """
    engine = build_engine(config, VOCAB, topology)
    refuses_half_a_round(engine)
    begun = evaluate(engine)
    losses, norms = train(engine, 1)
    write_pieces(folder / f"rank-{topology.rank}.safetensors", engine.pieces(), engine.step)
    early = evaluate(engine)
    for found, more in zip((losses, norms), train(engine, STEPS - 1), strict=True):
        found += more
    probabilities, alone = documents_alone(engine)
    return {
        "losses": losses, "norms": norms, "evaluations": [begun, early, evaluate(engine)], "probabilities": probabilities,
        "documents": alone, "replicas": replicas_differ(engine),
    }  # fmt: skip


def refuses_half_a_round(engine: Any) -> None:
    """The interleaved schedule takes micro-batches in rounds; what it cannot take is told before anything is exchanged."""
    if len(engine.chunks) > 1:
        with pytest.raises(UserError, match="not a multiple"):
            engine.train_step(windows(0, 1).micro_batches(1), LEARNING_RATE)


def dropout_run(config: RunConfig, topology: Topology, folder: Path) -> dict[str, Any]:
    engine = build_engine(config, VOCAB, topology)
    losses, norms = train(engine, DROPOUT_STEPS)
    return {"losses": losses, "norms": norms, "replicas": replicas_differ(engine)}


def jobs(world_size: int) -> dict[str, dict[str, tuple[Any, RunConfig]]]:
    """section → name → (what to run, config), for this number of processes. One process: what layouts are compared with."""
    declared = declarations()
    model, found = declared["model"], {"dropout": {}}
    for section, precision in SECTIONS.items():
        found[section] = {}
        for name, layout in declared[section].items():
            if world_size == 1:
                alone = {"parallel": {}, "model": layout.get("model", {}), "run": layout.get("run", {})}
                found[section][reference_key(layout)] = full_run, run_config(alone, model, precision)
            if layout["ranks"] == world_size:
                found[section][name] = full_run, run_config(layout, model, precision)
    leaky = model | {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    for name, layout in declared["dropout"].items():
        if layout["ranks"] == world_size:
            for way, recompute in {"none": {}, **declared["recompute"]}.items():
                found["dropout"][f"{name}: {way}"] = (
                    dropout_run, run_config({**layout, "parallel": layout["parallel"] | {"recompute": recompute}}, leaky),
                )  # fmt: skip
    return found


def declarations() -> dict[str, Any]:
    """layouts.yaml; of the families what CI trains, unless CODEMIX_SOAK=1; DeepSpeed's only where it is installed."""
    declared = yaml.safe_load((HERE / "layouts.yaml").read_text())
    if importlib.util.find_spec("deepspeed") is None:
        declared |= {"deepspeed": {}, "deepspeed_bf16": {}}
    if os.environ.get("CODEMIX_SOAK") != "1":
        declared["families"] = {name: declared["families"][name] for name in declared["families_in_ci"]}
    return declared


def reference_key(layout: dict[str, Any]) -> str:
    """Layouts of one model are compared with one run."""
    return json.dumps(layout.get("model", {}) | layout.get("run", {}), sort_keys=True)


def work(out: Path, only: str = "") -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    outcome: dict[str, dict[str, Any]] = {}
    for section, named in jobs(world_size).items():
        outcome[section] = {}
        for name, (run, config) in named.items():
            if only and not re.search(only, f"{section}: {name}"):
                continue
            begin = time.monotonic()
            folder = out / f"ranks-{world_size}" / section / str(len(outcome[section]))
            folder.mkdir(parents=True, exist_ok=True)
            with Topology.join(config.parallel, seed=config.seeds.init, timeouts=PATIENCE) as topology:
                result = run(config, topology, folder)
                everywhere: list[Any] = [None] * world_size
                dist.all_gather_object(everywhere, result)
                shared = {key: value for key, value in result.items() if key != "replicas"}
                assert all({**other, **shared} == other for other in everywhere), f"{name}: ranks disagree: {everywhere}"
                result["replicas"] = max(other["replicas"] for other in everywhere)
            outcome[section][name] = {**result, "folder": str(folder), "seconds": time.monotonic() - begin}
            if rank == 0:
                print(f"{world_size} process(es), {section}, {name}: {outcome[section][name]['seconds']:.1f} s", flush=True)
                (out / f"ranks-{world_size}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chunks.BUCKET_ELEMENTS = 6000  # several buckets to a stage, so that overlapped exchanges have something to overlap
    try:
        work(Path(sys.argv[1]), *sys.argv[2:])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # peers wait in collectives; the launcher ends them
