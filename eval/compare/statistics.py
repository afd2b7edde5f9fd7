"""Paired tests, intervals and effect sizes for the items of one task under two models; corrections over many tasks.

The difference of a pair is B − A. Where items come in clusters (prefixes of one problem, questions on one passage) the
cluster is what is resampled and flipped, since its items are not independent of one another.
Legend: N items, C clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_EXACT = 16
"""Up to so many clusters that differ, all 2^n sign flips are tried instead of R drawn ones."""
_FEW_VALUES = 64
"""Up to so many distinct values, resamples are drawn by value instead of by item: the same distribution, much cheaper."""
_CHUNK = 1 << 22
"""Draws held at once."""


@dataclass(frozen=True)
class Paired:
    """Clusters of one task: the difference of the metric is Σ numerators / Σ weights."""

    numerators: np.ndarray
    """float64 (C,): Σ of the differences B − A within the cluster."""
    weights: np.ndarray
    """float64 (C,): items within the cluster, or what the metric divides by (bytes, for bits per byte)."""

    @property
    def difference(self) -> float:
        """Metric of B less metric of A."""
        return float(self.numerators.sum() / self.weights.sum())


def pair(differences: np.ndarray, weights: np.ndarray | None = None, clusters: Sequence[str] | None = None) -> Paired:
    """differences, weights (default: ones): float (N,); clusters: name of each item's cluster (default: its own)."""
    weights = np.ones(len(differences)) if weights is None else weights
    if clusters is None:
        return Paired(differences.astype(np.float64), weights.astype(np.float64))
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return Paired(np.bincount(index, differences), np.bincount(index, weights))


def bootstrap_interval(paired: Paired, resamples: int, random: np.random.Generator, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the difference over clusters drawn with replacement (Efron & Tibshirani 1993, chapter 13)."""
    values, counts = np.unique(np.stack([paired.numerators, paired.weights], axis=1), axis=0, return_counts=True)
    total = int(counts.sum())
    found = np.empty(resamples)
    few = len(values) <= _FEW_VALUES
    step = max(1, _CHUNK // (len(values) if few else total))
    for at in range(0, resamples, step):
        rows = min(step, resamples - at)
        if few:
            sums = random.multinomial(total, counts / total, size=rows) @ values
        else:
            drawn = random.integers(0, total, size=(rows, total), dtype=np.int32)
            sums = np.stack([paired.numerators[drawn].sum(axis=1), paired.weights[drawn].sum(axis=1)], axis=1)
        found[at : at + rows] = sums[:, 0] / np.maximum(sums[:, 1], np.finfo(float).tiny)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)


def is_uniform(paired: Paired) -> bool:
    """Whether every cluster shows the same difference: then resamples and standard errors know nothing of what other items would."""
    residuals = np.abs(paired.numerators - paired.difference * paired.weights)
    return bool(residuals.max() <= 1e-12 * max(1.0, float(np.abs(paired.numerators).max())))


def uniform_interval(paired: Paired, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference d that all C clusters show, for scores within [0, 1], whose differences lie within [-1, 1].

    The share of clusters that would show another difference is at most u = 1 - ((1 - level) / 2)^(1/C) (Clopper & Pearson 1934),
    and these may show any. Clusters count alike, whatever their size.
    """
    others = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / len(paired.weights))
    kept = (1.0 - others) * paired.difference
    return max(-1.0, kept - others), min(1.0, kept + others)


def permutation_p(paired: Paired, resamples: int, random: np.random.Generator) -> float:
    """Two-sided p of the paired permutation test: under the null the two models' answers to a cluster may be exchanged.

    Exact for few clusters that differ; else (1 + extreme) / (1 + R), which is valid for any R (Phipson & Smyth 2010).
    """
    differing = paired.numerators[paired.numerators != 0.0]
    if not len(differing):
        return 1.0
    observed = abs(float(differing.sum()))
    # sums in another order differ by rounding: what equals the observed one must count as extreme
    bar = observed - 1e-9 * max(float(np.abs(differing).sum()), 1e-300)
    if len(differing) <= _MOST_EXACT:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing))) & 1)
        return float(np.mean(np.abs(signs @ differing) >= bar))
    sizes, counts = np.unique(np.abs(differing), return_counts=True)
    extreme = 0
    few = len(sizes) <= _FEW_VALUES
    step = max(1, _CHUNK // (len(sizes) if few else len(differing)))
    for at in range(0, resamples, step):
        rows = min(step, resamples - at)
        if few:
            sums = (2 * random.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes
        else:
            sums = (2 * random.integers(0, 2, size=(rows, len(differing)), dtype=np.int8) - 1) @ differing
        extreme += int(np.count_nonzero(np.abs(sums) >= bar))
    return (1 + extreme) / (1 + resamples)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: only_a, only_b items are right under one model alone (McNemar 1947).

    Under the null each of them is as likely to be the one as the other: twice the smaller binomial tail.
    """
    trials, fewest = only_a + only_b, min(only_a, only_b)
    if trials == 0:
        return 1.0
    logs = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(fewest + 1)]
    top = max(logs)
    tail = math.exp(top - trials * math.log(2.0) + math.log(math.fsum(math.exp(value - top) for value in logs)))
    return min(1.0, 2.0 * tail)


def standardised(paired: Paired) -> float:
    """Cohen's d of the paired differences, d_z: their mean over their standard deviation; 0 where all are equal to 0.

    Each cluster counts by what it adds to the difference, as in the difference itself: a long document for its length.
    """
    each = paired.numerators / float(paired.weights.mean())
    if len(each) < 2:
        return 0.0
    spread = float(each.std(ddof=1))
    return float(each.mean()) / spread if spread > 0.0 else math.copysign(math.inf, each[0]) if each[0] else 0.0


def odds_ratio(only_a: int, only_b: int) -> float | None:
    """Odds that an item on which the models differ is B's, with Haldane's ½ added to both counts, so that it is finite.

    None where there is no such item.
    """
    return None if only_a + only_b == 0 else (only_b + 0.5) / (only_a + 0.5)


def detectable(paired: Paired) -> float:
    """The difference that these clusters would show at α = 5 % with a power of 80 %, by the normal approximation.

    Infinite where they cannot tell: one cluster, or all with the same difference.
    """
    if len(paired.numerators) < 2 or is_uniform(paired):
        return math.inf
    residuals = paired.numerators - paired.difference * paired.weights
    error = math.sqrt(len(residuals) * float(residuals.var(ddof=1))) / float(paired.weights.sum())
    return (1.959964 + 0.841621) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the chance of any false finding (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the expected share of false findings (Benjamini & Hochberg 1995)."""
    order = np.argsort(p_values, kind="stable")[::-1]
    adjusted, smallest = np.empty(len(p_values)), 1.0
    for rank, index in enumerate(order):
        smallest = min(smallest, p_values[index] * len(p_values) / (len(p_values) - rank))
        adjusted[index] = smallest
    return [float(value) for value in adjusted]
