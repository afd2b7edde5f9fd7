"""Declared mixtures → pieces with constant rational shares.

A constant share is one piece. A ramp becomes a staircase of at most RAMP_PIECES pieces of whole global
batches; a piece's share is the ramp's exact mean over its samples, so the target at every step of the
staircase is the ramp's own. Stages beyond EXACT_RAMP_SAMPLES round a piece's shares to multiples of
1/RAMP_DENOMINATOR (the tables stay small) and carry the rounding error into the next piece, so that it
never adds up: at a piece's end the target is within length / RAMP_DENOMINATOR samples of the ramp's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from megatron_codemix.config.section import exact_share
from megatron_codemix.config.stage import Ramp
from megatron_codemix.mixture.interleave import Piece
from megatron_codemix.mixture.staircase import Staircase

RAMP_PIECES = 256
RAMP_DENOMINATOR = 1024
EXACT_RAMP_SAMPLES = 1 << 20


def ends_of(share: float | str | Ramp) -> tuple[Fraction, Fraction]:
    """The exact share at the first and at the last sample of a stage."""
    if isinstance(share, Ramp):
        return exact_share(share.start), exact_share(share.end)
    exact = exact_share(share)
    return exact, exact


def _round_to_sum(values: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers near `values` (none negative) that sum to `total`: largest remainders, earlier ones first."""
    values = [max(value, Fraction(0)) for value in values]
    scale = Fraction(total) / sum(values)
    values = [value * scale for value in values]
    whole = [math.floor(value) for value in values]
    order = sorted(range(len(values)), key=lambda index: (whole[index] - values[index], index))
    for index in order[: total - sum(whole)]:
        whole[index] += 1
    return whole


def targets_at(pieces: Sequence[Piece], position: int) -> tuple[Fraction, ...]:
    """Exact sum of each source's shares over the first `position` samples."""
    targets = [Fraction(0) for _ in pieces[0].shares]
    for piece in pieces:
        length = min(piece.length, position)
        targets = [target + share * length for target, share in zip(targets, piece.shares, strict=True)]
        position -= length
    return tuple(targets)


def stage_pieces(shares: Sequence[tuple[Fraction, Fraction]], batches: Staircase) -> list[Piece]:
    """Pieces of a stage with these global batches, from each source's share at its first and last sample."""
    num_samples, num_steps = batches.num_samples, batches.num_steps
    if all(start == end for start, end in shares):
        return [Piece(num_samples, tuple(start for start, _ in shares))]
    num_pieces = min(num_steps, RAMP_PIECES)
    exact = num_samples <= EXACT_RAMP_SAMPLES
    owed = [Fraction(0)] * len(shares)
    pieces = []
    for index in range(num_pieces):
        first = batches.samples_before(index * num_steps // num_pieces)
        end = batches.samples_before((index + 1) * num_steps // num_pieces)
        length = end - first
        middle = Fraction(first + end - 1, 2 * (num_samples - 1)) if num_samples > 1 else Fraction(1, 2)
        means = [start + (stop - start) * middle for start, stop in shares]
        if not exact:
            wanted = [(mean + debt / length) * RAMP_DENOMINATOR for mean, debt in zip(means, owed, strict=True)]
            rounded = [Fraction(value, RAMP_DENOMINATOR) for value in _round_to_sum(wanted, RAMP_DENOMINATOR)]
            owed = [debt + (mean - share) * length for debt, mean, share in zip(owed, means, rounded, strict=True)]
            means = rounded
        pieces.append(Piece(length, tuple(means)))
    return pieces
