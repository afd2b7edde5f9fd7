"""Log-probabilities from final hidden states, without ever holding the logits of all positions.

Legend: N states, H hidden size, V vocabulary, Q (state, target) pairs.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from eval.engine.linear import FastLinear, linear

_BLOCK_FLOATS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Logits held at once (4 and 512 MiB in fp32): on a CPU they stay in the cache between the passes over them."""

_ROWS = {"cpu": 256, "cuda": 4096}
"""States at once: enough that a block of the output layer is read for many."""


def pick(head: nn.Module, states_NH: torch.Tensor, rows_Q: torch.Tensor, targets_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log P(target), whether no token is more likely) of each pair, float32 and bool (Q,).

    The softmax runs online over blocks of the vocabulary (arXiv 1805.02867), in fp32.
    """
    if type(head) not in (nn.Linear, FastLinear):
        return pick_logits(head(states_NH), rows_Q, targets_Q)
    assert isinstance(head, nn.Linear)
    device = states_NH.device.type
    step = _ROWS[device]
    found = torch.empty(len(rows_Q), device=states_NH.device)
    best = torch.empty(len(rows_Q), device=states_NH.device)
    totals = torch.empty(len(rows_Q), device=states_NH.device)
    order = torch.argsort(rows_Q, stable=True)
    bounds = torch.searchsorted(
        rows_Q[order], torch.arange(0, len(states_NH) + _ROWS[device], _ROWS[device], device=rows_Q.device)
    ).tolist()
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        first = number * step
        states = states_NH[first : first + step]
        pairs = order[low:high]
        rows, targets = rows_Q[pairs] - first, targets_Q[pairs]
        width = max(1, _BLOCK_FLOATS[device] // max(1, len(states)))
        largest, total, chosen = _online(head, states, rows, targets, width)
        found[pairs], best[pairs], totals[pairs] = chosen, largest[rows], total[rows].log()
    return found - best - totals, found >= best


def _online(
    head: nn.Linear, states: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(largest logit, Σ exp(logit − largest), the pairs' logits), over blocks of `width` rows of the output layer."""
    largest = torch.full((len(states),), -torch.inf, device=states.device)
    total = torch.zeros(len(states), device=states.device)
    chosen = torch.empty(len(rows), device=states.device)
    for at in range(0, head.out_features, width):
        bias = None if head.bias is None else head.bias[at : at + width]
        logits = linear(states, head.weight[at : at + width], bias).float()
        inside = ((targets >= at) & (targets < at + width)).nonzero()[:, 0]
        chosen[inside] = logits[rows[inside], targets[inside] - at]
        peak = torch.maximum(largest, logits.amax(-1))
        total = total * (largest - peak).exp() + logits.sub_(peak[:, None]).exp_().sum(-1)
        largest = peak
    return largest, total, chosen


def pick_logits(logits_NV: torch.Tensor, rows_Q: torch.Tensor, targets_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pick`, from logits."""
    logits_NV = logits_NV.float()
    chosen = logits_NV[rows_Q, targets_Q]
    return chosen - torch.logsumexp(logits_NV, -1)[rows_Q], chosen >= logits_NV.amax(-1)[rows_Q]
