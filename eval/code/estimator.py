"""pass@k: the chance that one of k samples passes, estimated from n ≥ k samples of which c passed (arXiv 2107.03374)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.outcome import Metrics
from eval.tasks.choices import share_metrics
from megatron_codemix.errors import UserError


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k), unbiased. The quotient is taken as Π_{i=n−c+1}^{n} (1 − k/i), whose factors stay between 0 and 1.

    Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n: of fewer samples than k there is no unbiased estimate.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} passed in {n}: needs 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def check_k(ks: Sequence[int], samples: int, temperature: float, where: str) -> None:
    """Raises UserError where pass@k cannot be estimated, or where all samples would be the same."""
    if max(ks) > samples:
        raise UserError(f"{where}: pass@{max(ks)} needs samples of at least {max(ks)}, not {samples}; give more samples or a smaller k")
    if temperature == 0.0 and samples > 1:
        raise UserError(f"{where}: {samples} samples at temperature 0 are the same one; give a temperature, or one sample")


def pass_metrics(counts: Sequence[tuple[str, int, int]], ks: Sequence[int], prefix: str = "") -> Metrics:
    """Means of pass@k over (cluster, n, c), each with a standard error and a 95 % interval (`share_metrics`)."""
    metrics: Metrics = {}
    clusters = [cluster for cluster, _, _ in counts]
    for k in sorted(set(ks)):
        metrics |= share_metrics(f"{prefix}pass@{k}", [pass_at_k(n, c, k) for _, n, c in counts], clusters)
    return metrics


def incremental_metrics(counts: Sequence[tuple[str, int, int]], ks: Sequence[int]) -> Metrics:
    """Both aggregates of incremental pass@k (arXiv 2402.05783), over (problem, n, c) of every prompt.

    macro: the mean over all prompts. micro: n and c are pooled over the prompts of a problem, then the mean over problems.
    """
    pooled: dict[str, tuple[int, int]] = {}
    for problem, n, c in counts:
        before = pooled.get(problem, (0, 0))
        pooled[problem] = (before[0] + n, before[1] + c)
    micro = [(problem, n, c) for problem, (n, c) in pooled.items()]
    return pass_metrics(counts, ks, "macro_") | pass_metrics(micro, ks, "micro_") | {"problems": len(micro)}


def verdict_metrics(verdicts: Mapping[str, int]) -> Metrics:
    """How many samples ended how: verdict_passed, verdict_timed_out, …"""
    return {f"verdict_{verdict.replace(' ', '_')}": count for verdict, count in sorted(verdicts.items())}
