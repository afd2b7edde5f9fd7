"""The comparison of two results: one row per task, corrected for how many tasks were looked at."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.compare.pairing import PairedTask, other_settings, pair_tasks
from eval.compare.statistics import (
    Paired,
    benjamini_hochberg,
    bootstrap_interval,
    detectable,
    holm,
    is_uniform,
    mcnemar_p,
    odds_ratio,
    pair,
    permutation_p,
    standardised,
    uniform_interval,
)
from eval.results import Results
from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress

WHAT_THIS_IS = (
    "This compares two checkpoints, not two mixtures: items say how well each of these two models is measured. "
    "Whether a mixture makes models better is a question of many trained models (seeds): see 'codemix study'."
)


@dataclass(frozen=True)
class TaskComparison:
    """One task under both models. Differences are B − A, in the score's own units."""

    task: str
    kind: str
    items: int
    clusters: int
    left_out: int
    score_a: float
    score_b: float
    difference: float
    low: float
    high: float
    """95 % interval of the difference: bootstrap, or exact where every item shows the same one; NaN where neither is to be had."""
    test: str
    """mcnemar (exact; scores 0 or 1, no clusters) or permutation."""
    p: float
    p_holm: float
    q: float
    """Benjamini & Hochberg."""
    only_a: int | None
    only_b: int | None
    """Items that are right under one model alone, for scores of 0 or 1."""
    odds_ratio: float | None
    effect: float
    """Cohen's d of the paired differences."""
    detectable: float
    """The difference that this many items would have shown with a power of 80 %; infinite where they cannot tell."""
    lower_is_better: bool

    @property
    def verdict(self) -> str:
        """In words, at α = 5 % after Holm's correction."""
        if self.p_holm > 0.05:
            return "no difference shown"
        return "B is better" if (self.difference < 0) == self.lower_is_better else "A is better"


@dataclass(frozen=True)
class Comparison:
    """All tasks of two results."""

    a: str
    b: str
    same_model: bool
    tasks: list[TaskComparison]
    not_compared: dict[str, str]
    other_settings: dict[str, list[Any]]
    """Settings that the two were not measured under alike: name → [A's, B's]. Part of a difference may be theirs."""
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Everything, for compare.json."""
        return {
            "format_version": 1,
            "a": self.a,
            "b": self.b,
            "same_model": self.same_model,
            "note": WHAT_THIS_IS,
            "resamples": self.resamples,
            "seed": self.seed,
            "tasks": {one.task: _finite(vars(one) | {"verdict": one.verdict}) for one in self.tasks},
            "not_compared": self.not_compared,
            "other_settings": self.other_settings,
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither infinity nor NaN."""
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items() if key != "task"}


def compare(a: Results, b: Results, *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Every task that both hold. Raises UserError where they have none in common."""
    paired, refused = pair_tasks(a, b)
    if not paired:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise UserError(
            f"{a.folder} and {b.folder} hold no task that can be compared ({reasons or 'no tasks'}); measure both on the same tasks"
        )
    with progress("comparing", len(paired), "tasks") as bar:
        rows = []
        for task in paired:
            rows.append(_compare_task(task, resamples, seed))
            bar.advance()
    p_values = [row.p for row in rows]
    rows = [replace(row, p_holm=p, q=q) for row, p, q in zip(rows, holm(p_values), benjamini_hochberg(p_values), strict=True)]
    keys = ("sha256", "definition_sha256")
    same = all(a.value["model"].get(key) == b.value["model"].get(key) for key in keys)
    return Comparison(a.label, b.label, same, rows, refused, other_settings(a, b), resamples, seed)


def _compare_task(task: PairedTask, resamples: int, seed: int) -> TaskComparison:
    digest = hashlib.sha256(f"compare\0{seed}\0{task.name}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    paired = pair((task.b - task.a) * task.weights, task.weights, task.clusters)
    only_a = int(np.count_nonzero((task.a == 1) & (task.b == 0))) if task.binary else None
    only_b = int(np.count_nonzero((task.a == 0) & (task.b == 1))) if task.binary else None
    low, high = _interval(task, paired, resamples, random)
    exact = only_a is not None and only_b is not None and task.clusters is None
    p = mcnemar_p(only_a, only_b) if exact else permutation_p(paired, resamples, random)  # type: ignore[arg-type]
    return TaskComparison(
        task=task.name,
        kind=task.kind,
        items=len(task.a),
        clusters=len(paired.weights),
        left_out=task.left_out,
        score_a=float(np.average(task.a, weights=task.weights)),
        score_b=float(np.average(task.b, weights=task.weights)),
        difference=paired.difference,
        low=low,
        high=high,
        test="mcnemar" if exact else "permutation",
        p=p,
        p_holm=p,
        q=p,
        only_a=only_a,
        only_b=only_b,
        odds_ratio=odds_ratio(only_a, only_b) if only_a is not None and only_b is not None else None,
        effect=standardised(paired),
        detectable=detectable(paired),
        lower_is_better=task.lower_is_better,
    )


def _interval(task: PairedTask, paired: Paired, resamples: int, random: np.random.Generator) -> tuple[float, float]:
    """Of items that all differ alike, or not at all, every resample is the same: an interval of no width would be no finding."""
    if not is_uniform(paired):
        return bootstrap_interval(paired, resamples, random)
    within = all(scores.min() >= 0.0 and scores.max() <= 1.0 for scores in (task.a, task.b))
    return uniform_interval(paired) if within and not task.lower_is_better else (math.nan, math.nan)
