"""What every multiple-choice task reports, wherever its choices come from.

Accuracy says little about small models, which sit at chance on most of these tasks. So each item also keeps the gold
answer's log-probability per byte and by how much it leads (or trails) the best wrong choice, and each task says whether
its accuracy can be told from chance at all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from eval.compare.statistics import bootstrap_interval, pair
from eval.outcome import Metrics, mean

_Z = 1.959963984540054
"""Quantile .975 of the normal distribution: a 95 % interval."""
_RESAMPLES = 10_000


def wilson_interval(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a share of `total` independent items (Wilson 1927): sensible at 0, at 1 and for few items.

    right: sum of the items' scores, each from 0 to 1. total 0 gives (0, 1).
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, _Z * _Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    # at the ends rounding would leave 1e-17 beside 0, and exclude a chance of exactly 0 or 1
    return (0.0 if right == 0 else max(0.0, middle - half)), (1.0 if right == total else min(1.0, middle + half))


def share_metrics(name: str, scores: Sequence[float], clusters: Sequence[str] | None = None) -> Metrics:
    """A share with its standard error and 95 % interval: name, name_stderr, name_low, name_high.

    clusters: of each score. Scores of one cluster depend on one another (questions on one text): where several share one, the error is
    that of `clustered_error` and the interval that of `clustered_interval`; otherwise both are those of independent items.
    """
    if clusters is not None and len(set(clusters)) < len(clusters):
        error, (low, high) = clustered_error(clusters, scores), clustered_interval(clusters, scores)
    else:
        deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
        error, (low, high) = deviation / math.sqrt(max(1, len(scores))), wilson_interval(float(sum(scores)), len(scores))
    return {name: mean(list(scores)), f"{name}_stderr": error, f"{name}_low": low, f"{name}_high": high}


def clustered_error(clusters: Sequence[str], values: Sequence[float]) -> float:
    """Standard error of a mean of N values that depend on one another within G clusters; 0 for a single cluster.

    √(G/(G−1) · Σ_g (Σ_{i∈g} (x_i − x̄))²) / N.
    """
    middle = mean(list(values))
    sums: dict[str, float] = {}
    for cluster, value in zip(clusters, values, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - middle
    groups = len(sums)
    if groups < 2:
        return 0.0
    return math.sqrt(groups / (groups - 1) * sum(total * total for total in sums.values())) / len(values)


def clustered_interval(clusters: Sequence[str], values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean of values from 0 to 1, clusters drawn with replacement, as `codemix eval compare` draws them.

    Where no two clusters differ, which resampling would take for certainty: Wilson's, of as many items as there are clusters.
    """
    paired = pair(np.asarray(values, dtype=np.float64), clusters=clusters)
    each = paired.numerators / paired.weights
    if np.ptp(each) < 1e-12:
        return wilson_interval(float(each[0]) * len(each), len(each))
    low, high = bootstrap_interval(paired, _RESAMPLES, np.random.default_rng(0))
    return max(0.0, low), min(1.0, high)  # sums of floats end next to 1


def clusters_of(items: Sequence[dict[str, Any]]) -> list[str] | None:
    """The clusters of items that name theirs; None where not all do."""
    return [str(item["cluster"]) for item in items] if all("cluster" in item for item in items) else None


def choice_item(
    choices: Sequence[str], gold: int, log_probabilities: Sequence[float] | np.ndarray, also_right: Collection[int] = ()
) -> dict[str, Any]:
    """The scores of one question; of equal scores the first counts as chosen.

    choices: their texts, whose UTF-8 lengths normalise. log_probabilities: nats, one per choice. also_right: further choices
    that count as right (BIG-bench); `gold` is then the most likely right one. Margins compare it with the best wrong choice.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    num_bytes = np.array([max(1, len(choice.encode("utf-8"))) for choice in choices])
    per_byte = values / num_bytes
    right = sorted({gold, *also_right})
    gold, gold_norm = max(right, key=lambda at: (values[at], -at)), max(right, key=lambda at: (per_byte[at], -at))
    chosen, chosen_norm = int(values.argmax()), int(per_byte.argmax())
    item = {
        "gold": gold,
        "chosen": chosen,
        "chosen_norm": chosen_norm,
        "score": int(chosen in right),
        "correct": int(chosen in right),
        "correct_norm": int(chosen_norm in right),
        "margin": _lead(values, gold, right),
        "margin_norm": _lead(per_byte, gold_norm, right),
        "gold_log_probability_per_byte": float(per_byte[gold_norm]),
        "log_probabilities": [float(value) for value in values],
        "bytes": num_bytes.tolist(),
    }
    return item | ({"right": right} if len(right) > 1 else {})


def _lead(values: np.ndarray, gold: int, right: list[int]) -> float:
    """By how much the gold choice leads the best wrong one; 0 where every choice is right."""
    wrong = np.delete(values, right)
    return float(values[gold] - wrong.max()) if len(wrong) else 0.0


def choice_metrics(items: Sequence[dict[str, Any]]) -> Metrics:
    """Means over items made by `choice_item`.

    chance: accuracy of a uniform guess. floor: the 95 % interval of the accuracy does not lie above chance, so the accuracy says nothing
    about the model; compare `gold_log_probability_per_byte` and `margin` then.
    """
    metrics = share_metrics("accuracy", [item["correct"] for item in items], clusters_of(items))
    chance = mean([len(item.get("right", (0,))) / len(item["bytes"]) for item in items])
    metrics |= {
        "accuracy_norm": mean([item["correct_norm"] for item in items]),
        "chance": chance,
        "floor": metrics["accuracy_low"] <= chance,
        "gold_log_probability_per_byte": mean([item["gold_log_probability_per_byte"] for item in items]),
        "margin": mean([item["margin"] for item in items]),
        "margin_norm": mean([item["margin_norm"] for item in items]),
        "questions": len(items),
    }
    return metrics


def continuation_metrics(items: Sequence[dict[str, Any]]) -> Metrics:
    """accuracy: every token is the most likely one; perplexity: of whole continuations, as LAMBADA is reported."""
    return share_metrics("accuracy", [item["correct"] for item in items], clusters_of(items)) | {
        "perplexity": math.exp(min(700.0, -mean([item["log_probability"] for item in items]))),
        "gold_log_probability_per_byte": mean([item["gold_log_probability_per_byte"] for item in items]),
        "items": len(items),
        "cut_contexts": sum(item["cut"] for item in items),
    }
