"""Whether two implementations of a model say the same, and where they first part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_codemix.checkpoint.observe import Observation
from megatron_codemix.checkpoint.probes import Probe

TOLERANCE = 1e-4
"""Largest accepted difference of any log-probability, in nats, between fp32 models with the same weights."""
BF16_TOLERANCE = 0.02
"""Largest accepted mean divergence KL(fp32 model ‖ bf16 export), in nats per token: what rounding may cost."""


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison."""

    largest: float
    """Largest absolute difference of a log-probability, in nats; infinite where one is not a number."""
    tokens: int
    """Positions compared, each over the whole vocabulary."""
    problem: str | None
    """Where they first differ by more than the tolerance, in words; None: they agree."""


def compare(ours: Observation, theirs: Observation, probes: Sequence[Probe], tolerance: float = TOLERANCE) -> Agreement:
    """Compare every log-probability of every probe; NaN never agrees with anything."""
    largest, problem = 0.0, None
    for probe, mine, other in zip(probes, ours.log_probabilities, theirs.log_probabilities, strict=True):
        if mine.shape != other.shape:
            return Agreement(float("inf"), 0, f"{_words(mine.shape)} here, {_words(other.shape)} in transformers ({probe.origin})")
        difference = (mine - other).abs().nan_to_num(nan=float("inf"))
        largest = max(largest, float(difference.max()))
        if problem is None and float(difference.max()) > tolerance:
            problem = f"{_where(probe, mine, other, difference, tolerance)}; {_first_layer(ours, theirs)}"
    return Agreement(largest, sum(probe.tokens.size for probe in probes), problem)


def _words(shape: torch.Size) -> str:
    return f"{shape[0]} positions × {shape[1]} vocabulary entries"


def _where(probe: Probe, mine: Tensor, other: Tensor, difference: Tensor, tolerance: float) -> str:
    position = int((difference.amax(dim=1) > tolerance).int().argmax())
    entry = int(difference[position].argmax())
    return (
        f"first at position {position} ({probe.origin}, token {int(probe.tokens[position])} there): the log-probability of "
        f"vocabulary entry {entry} is {float(mine[position, entry]):.6f} here, {float(other[position, entry]):.6f} in transformers"
    )


def _first_layer(ours: Observation, theirs: Observation) -> str:
    """The first place whose hidden states differ by more than rounding explains."""
    for number, (mine, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        # rounding grows with depth; a wrong weight gives differences of the size of the states themselves
        scale = max(float(mine.abs().max()), 1e-6)
        if mine.shape != other.shape or not float((mine - other).abs().max()) <= 1e-4 * scale:
            return "the hidden states first differ behind " + ("the embedding" if number == 0 else f"layer {number - 1}")
    return "the hidden states of every layer agree, so it is the final norm or the output matrix"


def divergence(ours: Observation, theirs: Observation) -> float:
    """Mean KL(ours ‖ theirs) over all positions, in nats per token (Kullback & Leibler 1951)."""
    total = sum(
        float((mine.double().exp() * (mine.double() - other.double())).sum())
        for mine, other in zip(ours.log_probabilities, theirs.log_probabilities, strict=True)
    )
    return total / sum(len(mine) for mine in ours.log_probabilities)
