"""What the plan says that some steps consumed, against what the ledger counted: the pure half of the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_codemix.mixture.ledger import Ledger, mix
from megatron_codemix.mixture.lineage import Lineage
from megatron_codemix.mixture.plan import Plan
from megatron_codemix.progress import progress


@dataclass(frozen=True)
class Expected:
    """What one source gave in the steps of a lineage, by the plan."""

    windows: int
    tokens: int
    epochs: float
    digest: str
    """As `Ledger.of` writes it under "hash"."""
    every_target: bool = True
    """Whether no objective took a token out of the targets, so that every window token is one."""


def expect(plan: Plan, lineage: Lineage) -> dict[str, Expected]:
    """Source → what the lineage's steps hold. Takes about a second for 10 million windows."""
    spans = [span for interval in lineage.intervals for span in _stage_spans(plan, interval.first, interval.end)]
    samples = sum(plan.first_sample(end) - plan.first_sample(first) for _, first, end in spans)
    found: dict[str, Expected] = {}
    with progress("recomputing the plan", samples, "windows") as bar:
        for number, name in enumerate(plan.sources):
            windows, tokens, every_target = 0, 0, True
            epochs, total, folded = 0.0, np.uint64(0), np.uint64(0)
            for index, first, end in spans:
                stage = plan.stages[index]
                every_target &= stage.objective.is_clm or not stage.windows[number]
                for epoch, ids in plan.windows_between(stage, number, first, end):
                    hashes = mix(np.full(len(ids), epoch), ids)
                    total = np.add.reduce(hashes, initial=total)
                    folded ^= np.bitwise_xor.reduce(hashes)
                    windows += len(ids)
                    tokens += len(ids) * stage.sequence_length
                    epochs += len(ids) / int(stage.windows[number])
                    bar.advance(len(ids))
            found[name] = Expected(windows, tokens, epochs, f"{int(total):016x}{int(folded):016x}", every_target)
    return found


def _stage_spans(plan: Plan, first: int, end: int) -> list[tuple[int, int, int]]:
    spans = [(stage.index, max(first, stage.first_step), min(end, stage.end_step)) for stage in plan.stages]
    return [span for span in spans if span[1] < span[2]]


def lineage_problems(plan: Plan, lineage: Lineage, step: int) -> list[str]:
    """Why a checkpoint after `step` updates of this plan cannot have this lineage; empty when it can."""
    problems = []
    if lineage.step != step:
        problems.append(f"lineage: ends at step {lineage.step:,}, but the checkpoint is of step {step:,}")
    if lineage.step > plan.num_steps:
        problems.append(f"lineage: goes to step {lineage.step:,}, but the plan ends at {plan.num_steps:,}")
    return problems


def reconcile(expected: Mapping[str, Expected], ledger: Ledger) -> list[str]:
    """Every disagreement, a line each; empty when the ledger counted exactly what was expected."""
    if set(ledger.sources) != set(expected):
        return [f"ledger: counts the sources {', '.join(ledger.sources)}; the plan has {', '.join(expected)}"]
    return [line for name, planned in expected.items() for line in _differences(name, planned, ledger.of(name))]


def _differences(name: str, planned: Expected, counted: Mapping[str, Any]) -> list[str]:
    missing = planned.windows - counted["windows"]
    if missing:
        words = f"{abs(missing):,} window{'s' if abs(missing) > 1 else ''} {'fewer' if missing > 0 else 'more'} than planned"
        return [f"{name}: {words} ({counted['windows']:,} consumed, {planned.windows:,} planned)"]
    if counted["hash"] != planned.digest:
        hashes = f"hash {counted['hash'][:12]}…, planned {planned.digest[:12]}…"
        return [f"{name}: as many windows as planned, but not the planned ones: some were dropped, repeated or exchanged ({hashes})"]
    problems = []
    if counted["tokens"] != planned.tokens:
        problems.append(f"{name}: {counted['tokens']:,} window tokens consumed, {planned.tokens:,} planned")
    if counted["targets"] + counted["padding"] + counted["excluded"] != counted["tokens"]:
        sums = f"{counted['targets']:,} targets, {counted['padding']:,} padding and {counted['excluded']:,} excluded"
        problems.append(f"{name}: {sums} do not make {counted['tokens']:,} window tokens")
    elif planned.every_target and counted["targets"] != counted["tokens"]:
        missing = f"{counted['tokens'] - counted['targets']:,} of {counted['tokens']:,} window tokens were no targets"
        problems.append(f"{name}: {missing}, but every stage that read it has the objective clm")
    return problems
