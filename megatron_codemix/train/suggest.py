"""`codemix check --suggest`: layouts that fit into the memory of a number of GPUs, the fastest by the cost model first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_codemix.config import RunConfig, data_ranks, sizes_of
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan
from megatron_codemix.mixture.table import align
from megatron_codemix.progress import progress
from megatron_codemix.train.cost import Cost, step_cost
from megatron_codemix.train.layouts import RECOMPUTES, layouts, with_recompute
from megatron_codemix.train.memory import RESERVE, MemoryEstimate, estimate
from megatron_codemix.train.space import size_words

GIB = 1 << 30


@dataclass(frozen=True)
class Suggestion:
    """A layout that fits."""

    config: RunConfig
    data_ranks: int
    memory: MemoryEstimate
    """Of the rank that needs most."""
    cost: Cost
    """Of a step of the longest stage of training."""
    seconds: float
    """Predicted for the whole run."""
    mfu: float
    """Predicted: the model's own operations over the peak, 0 to 1."""

    @property
    def overrides(self) -> list[str]:
        """What to paste behind `codemix train RUN.yaml`."""
        shown = json.dumps(self.config.parallel.model_dump(mode="json", exclude_defaults=True)).replace('"', "")
        return [f"parallel={shown}", f"micro_batch_size={self.config.micro_batch_size}"]

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, times in seconds."""
        return {
            "overrides": self.overrides,
            "parallel": self.config.parallel.model_dump(mode="json", exclude_defaults=True),
            "micro_batch_size": self.config.micro_batch_size,
            "data_ranks": self.data_ranks,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "step": {**asdict(self.cost), "seconds": self.cost.seconds},
            "run_seconds": self.seconds,
            "mfu": self.mfu,
        }


def suggest(config: RunConfig, plan: Plan, rows: int, *, num_gpus: int, memory: float, peak_tflops: float) -> list[Suggestion]:
    """Layouts of `num_gpus` GPUs whose worst rank leaves `RESERVE` of `memory` bytes free, the fastest first.

    One for each (tensor, pipeline, context): its best virtual stages and micro-batch, with the least recompute that fits.
    Raises UserError where none fits: told what the smallest would need.
    """
    best: dict[tuple[int, ...], Suggestion] = {}
    smallest: MemoryEstimate | None = None
    candidates = list(layouts(config, num_gpus))
    if not candidates:
        sizes = sorted({size for stage in config.stages for size in sizes_of(stage.batch_size)})
        raise UserError(
            f"--gpus {num_gpus}: no layout shares the stages' batch_size {sizes} evenly; give another number of GPUs or change batch_size"
        )
    with progress("layouts", len(candidates), "layouts") as bar:
        for run in candidates:
            data = data_ranks(run, num_gpus)
            for recompute in RECOMPUTES:
                chosen = with_recompute(run, recompute)
                needed = estimate(chosen, rows, data)
                if smallest is None or needed.total < smallest.total:
                    smallest = needed
                if needed.total <= memory * (1 - RESERVE):
                    found = _predicted(chosen, plan, rows, data, needed, num_gpus, peak_tflops)
                    key = (run.parallel.tensor, run.parallel.pipeline, run.parallel.context)
                    best[key] = min(best.get(key, found), found, key=_order)
                    break
            bar.advance()
    if not best:
        assert smallest is not None
        raise UserError(
            f"--memory {memory / GIB:g}: no layout of {num_gpus} GPU(s) fits; the smallest needs {size_words(smallest.total)}, and "
            f"{RESERVE:.0%} must stay free: give more GPUs, or shorten sequence_length"
        )
    return sorted(best.values(), key=_order)


def _predicted(
    config: RunConfig, plan: Plan, rows: int, data: int, memory: MemoryEstimate, num_gpus: int, peak_tflops: float
) -> Suggestion:
    seconds = operations = 0.0
    costs: list[tuple[int, Cost]] = []
    for stage in plan.stages:
        length = stage.sequence_length
        for tread in () if stage.inherited else stage.batches.treads:
            cost = step_cost(config, rows, data, peak_tflops, sequence_length=length, batch_size=tread.size)
            tokens = (tread.end - tread.first) * tread.size * length
            seconds += (tread.end - tread.first) * cost.seconds
            operations += tokens * config.model.flops_per_token(rows, length)
            costs.append((tokens, cost))
    mfu = operations / (seconds * num_gpus * peak_tflops * 1e12)
    return Suggestion(config, data, memory, max(costs, key=lambda pair: pair[0])[1], seconds, mfu)


def _order(found: Suggestion) -> tuple[float, ...]:
    """The fastest; among equals (to a thousandth) the plainest, then the smallest."""
    parallel = found.config.parallel
    plain = parallel.tensor * parallel.pipeline * parallel.context * parallel.virtual_stages
    return (float(f"{found.seconds:.3g}"), plain, found.memory.total)


def suggestion_table(suggestions: Sequence[Suggestion]) -> list[str]:
    """A line for each: memory of its worst rank, predicted step, MFU and hours, and the overrides, quoted for a shell."""
    rows = [("memory", "step", "MFU", "hours", "data", "overrides")]
    for found in suggestions:
        parallel, windows = found.overrides
        rows.append(
            (
                size_words(found.memory.total),
                f"{found.cost.seconds:.3g} s",
                f"{found.mfu:.1%}",
                f"{found.seconds / 3600:,.1f}",
                f"{found.data_ranks}",
                f"'{parallel}' {windows}",
            )
        )
    return align(rows, left=(5,))
