"""Whether two implementations of a model say the same, and where they first part.

The log-probabilities of all vocabulary entries at all positions are compared, some entries at a time: first each model's
normaliser is summed up over the vocabulary, then the differences are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_codemix.checkpoint.freed import give_back_freed
from megatron_codemix.checkpoint.observe import Observation
from megatron_codemix.checkpoint.probes import Probe
from megatron_codemix.progress import progress

TOLERANCE = 1e-4
"""Largest accepted difference of any log-probability, in nats, between fp32 models with the same weights."""
BF16_TOLERANCE = 0.02
"""Largest accepted mean divergence KL(fp32 model ‖ bf16 export), in nats per token: what rounding may cost."""
_CHUNK_ELEMENTS = 1 << 20
"""Of the output matrix, and of the log-probabilities, at a time: 4 MiB of fp32."""


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison."""

    largest: float
    """Largest absolute difference of a log-probability, in nats; infinite where one is not a number."""
    tokens: int
    """Positions compared, each over the whole vocabulary."""
    problem: str | None
    """Where they first differ by more than the tolerance, in words; None: they agree."""


@dataclass
class _Worst:
    """Per position: the largest difference so far, at which entry, and both log-probabilities there."""

    difference: Tensor
    entry: Tensor
    mine: Tensor
    other: Tensor

    @classmethod
    def of(cls, positions: int) -> _Worst:
        return cls(
            torch.full((positions,), -1.0), *(torch.zeros(positions, dtype=dtype) for dtype in (torch.int64, torch.float64, torch.float64))
        )

    def see(self, start: int, mine: Tensor, other: Tensor) -> None:
        difference = (mine - other).abs().nan_to_num(nan=float("inf")).float()
        found, entry = difference.max(dim=1)
        worse = found > self.difference
        rows = torch.arange(len(found))[worse]
        self.difference[worse], self.entry[worse] = found[worse], entry[worse] + start
        self.mine[worse], self.other[worse] = mine[rows, entry[worse]], other[rows, entry[worse]]


def compare(
    ours: Observation,
    theirs: Observation,
    probes: Sequence[Probe],
    vocab_size: int,
    tolerance: float = TOLERANCE,
    names: tuple[str, str] = ("here", "in transformers"),
) -> Agreement:
    """Compare every log-probability of every probe; NaN never agrees with anything.

    names: of the two implementations, for the problem's words.
    """
    worst = _Worst.of(sum(probe.tokens.size for probe in probes))
    for start, mine, other in _log_probabilities((ours, theirs), len(worst.entry), vocab_size):
        worst.see(start, mine, other)
    problem = None
    if bool((worst.difference > tolerance).any()):
        problem = f"{_where(probes, worst, tolerance, names)}; {_first_layer(ours, theirs)}"
    return Agreement(float(worst.difference.max()), len(worst.entry), problem)


def divergence(ours: Observation, theirs: Observation, probes: Sequence[Probe], vocab_size: int) -> float:
    """Mean KL(ours ‖ theirs) over all positions, in nats per token (Kullback & Leibler 1951)."""
    positions = sum(probe.tokens.size for probe in probes)
    chunks = _log_probabilities((ours, theirs), positions, vocab_size)
    return sum(float((mine.exp() * (mine - other)).sum()) for _, mine, other in chunks) / positions


def _log_probabilities(both: tuple[Observation, Observation], positions: int, vocab_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first entry, log-probabilities float64 (P, n) of the one, of the other) for the whole vocabulary, in order."""
    give_back_freed()  # of the forward passes before
    step = max(_CHUNK_ELEMENTS // max(positions, *(one.hidden_size for one in both)), 1)
    chunks = [(start, min(start + step, vocab_size)) for start in range(0, vocab_size, step)]
    with progress("comparing log-probabilities", 2 * vocab_size, "vocabulary entries") as bar:
        normalisers = [torch.full((positions,), float("-inf"), dtype=torch.float64) for _ in both]
        for start, stop in chunks:
            for normaliser, one in zip(normalisers, both, strict=True):
                torch.logaddexp(normaliser, one.logits(start, stop).double().logsumexp(dim=1), out=normaliser)
            bar.advance(stop - start)
        for start, stop in chunks:
            mine, other = (one.logits(start, stop).double() - total[:, None] for one, total in zip(both, normalisers, strict=True))
            yield start, mine, other
            bar.advance(stop - start)


def _where(probes: Sequence[Probe], worst: _Worst, tolerance: float, names: tuple[str, str]) -> str:
    place = int((worst.difference > tolerance).int().argmax())
    position = place
    for probe in probes:
        if position < probe.tokens.size:
            break
        position -= probe.tokens.size
    mine, other = float(worst.mine[place]), float(worst.other[place])
    return (
        f"first at position {position} ({probe.origin}, token {int(probe.tokens[position])} there): the log-probability of "
        f"vocabulary entry {int(worst.entry[place])} is {mine:.6f} {names[0]}, {other:.6f} {names[1]}"
    )


def _first_layer(ours: Observation, theirs: Observation) -> str:
    """The first place whose hidden states differ by more than rounding explains."""
    for number, (mine, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        # rounding grows with depth; a wrong weight gives differences of the size of the states themselves
        scale = max(float(mine.abs().max()), 1e-6)
        if mine.shape != other.shape or not float((mine - other).abs().max()) <= 1e-4 * scale:
            return "the hidden states first differ behind " + ("the embedding" if number == 0 else f"layer {number - 1}")
    return "the hidden states of every layer agree, so it is the final norm or the output matrix"
