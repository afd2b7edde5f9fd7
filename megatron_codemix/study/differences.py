"""What a study can say: differences between mixtures, paired by seed.

The unit is the trained model. A seed gives one number per mixture, and the differences between two
mixtures over the seeds they share are the sample; documents and prompts only say how well one model is
measured, so no interval here is made from them. With few seeds the differences themselves are the
result: they are listed, not tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def bits_per_byte_tasks(arms: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the held-out domains that any of the arms was evaluated on."""
    found = {name: None for arm in arms for name, task in arm["evaluation"].items() if task["kind"] == "bits_per_byte"}
    return list(found)


def values_of(arms: Sequence[dict[str, Any]], task: str, metric: str) -> dict[tuple[float, int], float]:
    """(share, seed) → value, over the arms that have it."""
    found = {}
    for arm in arms:
        value = arm["evaluation"].get(task, {}).get("metrics", {}).get(metric)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[arm["share"], arm["seed"]] = float(value)
    return found


def paired_differences(values: dict[tuple[float, int], float]) -> list[dict[str, Any]]:
    """Each share against the smallest one: value(share, seed) − value(reference, seed), for every seed both have."""
    shares = sorted({share for share, _ in values})
    rows = []
    for share in shares[1:]:
        by_seed = {
            str(seed): values[share, seed] - values[shares[0], seed]
            for at, seed in sorted(values)
            if at == share and (shares[0], seed) in values
        }
        if by_seed:
            row = {"share": share, "reference": shares[0], "by_seed": by_seed, "mean": sum(by_seed.values()) / len(by_seed)}
            rows.append({**row, "same_sign": len({difference > 0 for difference in by_seed.values()}) == 1})
    return rows


_PASS = ("pass@1", "macro_pass@1", "micro_pass@1", "tests_passed_share")

_REPORTED = {
    "bits_per_byte": ("bits_per_byte",),
    "multiple_choice": ("accuracy", "accuracy_norm"),
    "generation": ("exact_match",),
    "python_parses": ("parse_share",),
    "standard": ("accuracy", "accuracy_norm", "exact_match", "gold_log_probability_per_byte"),
    "continuation": ("accuracy", "gold_log_probability_per_byte"),
    "bigbench": ("normalised", "gold_log_probability_per_byte"),
    "arithmetic": ("exact_match", "gold_log_probability_per_byte"),
    "minimal_pairs": ("accuracy",),
    "humaneval": _PASS,
    "mbpp": _PASS,
    "infilling": _PASS,
    "programs": _PASS,
}
"""Kind of task → the metrics that are compared."""


def headline_metrics(kind: str, metrics: dict[str, Any]) -> list[str]:
    """The metrics of a task that the report shows and compares: those known for its kind, else every number."""
    known = [name for name in _REPORTED.get(kind, ()) if name in metrics]
    return known or [name for name, value in metrics.items() if isinstance(value, float)]


def comparisons(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every task and headline metric: the paired differences from the smallest share."""
    found = []
    kinds = {name: task for arm in arms for name, task in arm["evaluation"].items()}
    for name, task in kinds.items():
        for metric in headline_metrics(task["kind"], task["metrics"]):
            rows = paired_differences(values_of(arms, name, metric))
            if rows:
                found.append({"task": name, "metric": metric, "differences": rows})
    return found


def against_controls(arms: Sequence[dict[str, Any]], controls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every kind of control, task and headline metric: value(arm) − value(its control), share by share and seed by seed."""
    found = []
    kinds = {name: task for arm in arms for name, task in arm["evaluation"].items()}
    for control in dict.fromkeys(item["control"] for item in controls):
        others = [item for item in controls if item["control"] == control]
        for name, task in kinds.items():
            for metric in headline_metrics(task["kind"], task["metrics"]):
                mine, theirs = values_of(arms, name, metric), values_of(others, name, metric)
                rows = []
                for share in sorted({share for share, _ in theirs}):
                    by_seed = {
                        str(seed): mine[at, seed] - theirs[at, seed] for at, seed in sorted(theirs) if at == share and (at, seed) in mine
                    }
                    if by_seed:
                        row = {"share": share, "by_seed": by_seed, "mean": sum(by_seed.values()) / len(by_seed)}
                        rows.append({**row, "same_sign": len({difference > 0 for difference in by_seed.values()}) == 1})
                if rows:
                    found.append({"control": control, "task": name, "metric": metric, "differences": rows})
    return found
