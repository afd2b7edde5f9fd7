"""Which source each sample comes from: within one sample of the declared share at every prefix, with random access."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Interleaving, Piece, bound
from megatron_codemix.mixture.pieces import stage_pieces
from megatron_codemix.mixture.staircase import Staircase

DENOMINATORS = st.integers(1, 360)


@st.composite
def shares(draw, num_sources: int, denominators=DENOMINATORS):
    """Exact shares of `num_sources` sources that sum to 1; some may be zero."""
    whole = draw(denominators)
    cuts = sorted(draw(st.lists(st.integers(0, whole), min_size=num_sources - 1, max_size=num_sources - 1)))
    return tuple(Fraction(b - a, whole) for a, b in zip([0, *cuts], [*cuts, whole], strict=True))


@st.composite
def piece_lists(draw, max_pieces=4, max_length=500):
    num_sources = draw(st.integers(2, 40))
    number = draw(st.integers(1, max_pieces))
    return [Piece(draw(st.integers(1, max_length)), draw(shares(num_sources))) for _ in range(number)]


def worst_distance(pieces: list[Piece], sources: np.ndarray) -> Fraction:
    """Largest |count − exact target| over all sources and prefixes, in exact arithmetic."""
    num_sources, unit = len(pieces[0].shares), 1
    for piece in pieces:
        unit = np.lcm.reduce([unit, *(share.denominator for share in piece.shares)], dtype=object)
    steps = np.concatenate([np.tile(np.array([int(s * unit) for s in piece.shares], object), (piece.length, 1)) for piece in pieces])
    counts = np.zeros((len(sources), num_sources), object)
    counts[np.arange(len(sources)), sources] = 1
    return Fraction(int(np.abs(np.cumsum(counts * unit - steps, axis=0)).max()), int(unit))


@settings(max_examples=60, deadline=None)
@given(piece_lists())
def test_every_prefix_is_within_one_sample(pieces):
    interleaving = Interleaving.compile(pieces)
    positions = np.arange(interleaving.num_samples)
    sources, ranks = interleaving.select(positions)
    limit = bound(len(pieces[0].shares))
    assert limit < 1
    assert worst_distance(pieces, sources) <= limit
    onehot = np.eye(len(pieces[0].shares), dtype=np.int64)[sources]
    before = np.cumsum(onehot, axis=0) - onehot
    assert np.array_equal(ranks, before[positions, sources]), "a rank counts the same source's samples before"
    for position in {0, len(positions) // 3, len(positions) - 1}:
        assert np.array_equal(interleaving.counts(position), before[position])
    assert interleaving.counts(len(positions)).sum() == len(positions)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_sources=st.integers(2, 40), num_steps=st.integers(1, 60), batch_size=st.integers(1, 12))
def test_ramps_keep_the_bound_against_the_cumulative_target(data, num_sources, num_steps, batch_size):
    ends = list(zip(data.draw(shares(num_sources)), data.draw(shares(num_sources)), strict=True))
    members = [end for end in ends if any(end)]
    pieces = stage_pieces(members, Staircase.constant(num_steps, batch_size))
    assert sum(piece.length for piece in pieces) == num_steps * batch_size
    sources, _ = Interleaving.compile(pieces).select(np.arange(num_steps * batch_size))
    assert worst_distance(pieces, sources) <= bound(len(members))


def chairman(pieces: list[Piece]) -> list[int]:
    """Tijdeman's rule read off the definition, sample by sample: no periods, no tables, no jumps."""
    num_sources, number = len(pieces[0].shares), sum(piece.length for piece in pieces)
    steps = [piece.shares for piece in pieces for _ in range(piece.length)]
    slack = bound(num_sources)
    targets, counts, chosen = [Fraction(0)] * num_sources, [0] * num_sources, []

    def deadline(source: int, t: int) -> Fraction:
        total, end = targets[source], t
        while total <= counts[source] + slack and end < number:
            total += steps[end][source]
            end += 1
        if total > counts[source] + slack:
            return Fraction(end)
        last = pieces[-1].shares[source]  # goes on behind the end
        return number + (counts[source] + slack - total) // last + 1 if last else Fraction(10**9)

    for t in range(1, number + 1):
        targets = [target + share for target, share in zip(targets, steps[t - 1], strict=True)]
        allowed = [source for source in range(num_sources) if targets[source] >= counts[source] + 1 - slack]
        chosen.append(min(allowed, key=lambda source: (deadline(source, t), source)))
        counts[chosen[-1]] += 1
    return chosen


@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_sources=st.integers(2, 10))
def test_equals_the_definition_whatever_was_carried_over(data, num_sources):
    """A piece of many periods between two others begins with a remainder; what is stored and repeated must not show."""
    lengths = [data.draw(st.integers(1, 40)), data.draw(st.integers(100, 300)), data.draw(st.integers(1, 40))]
    pieces = [Piece(length, data.draw(shares(num_sources, st.integers(2, 24)))) for length in lengths]
    interleaving = Interleaving.compile(pieces)
    sources, _ = interleaving.select(np.arange(interleaving.num_samples))
    assert sources.tolist() == chairman(pieces)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), num_sources=st.integers(2, 20), length=st.integers(1, 700), longer=st.integers(1, 10**12))
def test_a_longer_stage_begins_like_a_shorter_one(data, num_sources, length, longer):
    declared = data.draw(shares(num_sources))
    short = Interleaving.compile([Piece(length, declared)])
    long = Interleaving.compile([Piece(length + longer, declared)])
    positions = np.arange(length)
    assert np.array_equal(short.select(positions)[0], long.select(positions)[0])


def greedy(declared, number):
    """The largest deficit goes first: the rule that does not keep the bound."""
    counts, chosen = [Fraction(0)] * len(declared), []
    for t in range(1, number + 1):
        deficits = [share * t - count for share, count in zip(declared, counts, strict=True)]
        chosen.append(deficits.index(max(deficits)))
        counts[chosen[-1]] += 1
    return np.array(chosen)


def test_negative_control_largest_deficit_breaks_the_bound_with_six_sources():
    declared = tuple(Fraction(part, 18) for part in (1, 1, 1, 1, 7, 7))
    pieces = [Piece(18, declared)]
    assert worst_distance(pieces, greedy(declared, 18)) > 1
    sources, _ = Interleaving.compile(pieces).select(np.arange(18))
    assert worst_distance(pieces, sources) <= Fraction(9, 10) == bound(6)


def test_exact_where_shares_are_whole():
    interleaving = Interleaving.compile([Piece(4 * 10**11, (Fraction(1, 4), Fraction(3, 4)))])
    assert interleaving.table_size == 4
    for position in (4, 400, 4 * 10**11):
        assert interleaving.counts(position).tolist() == [position // 4, 3 * position // 4]


def test_access_costs_the_same_everywhere():
    third = (Fraction(1, 3), Fraction(333, 1000), 1 - Fraction(1, 3) - Fraction(333, 1000))
    interleaving = Interleaving.compile([Piece(10**12, third), Piece(10**12, third[::-1])])
    assert interleaving.table_size < 10 * 3000
    begin = time.perf_counter()
    for position in (0, 5 * 10**8, 10**12 - 7, 2 * 10**12 - 1):
        source, rank = interleaving.select(np.array([position]))
        counts = interleaving.counts(position)
        assert counts.sum() == position
        assert counts[source[0]] == rank[0]
    assert time.perf_counter() - begin < 1.0, "a lookup is not a replay (milliseconds; a second leaves room for a busy machine)"
    counts = interleaving.counts(2 * 10**12)
    target = [10**12 * (third[i] + third[2 - i]) for i in range(3)]
    assert max(abs(int(count) - exact) for count, exact in zip(counts, target, strict=True)) < 1


def test_huge_denominators_are_exact_or_refused():
    declared = (Fraction(1, 1_000_003), Fraction(400_000, 1_000_003), Fraction(600_002, 1_000_003))
    interleaving = Interleaving.compile([Piece(10**9, declared)])
    counts = interleaving.counts(10**9)
    assert max(abs(int(count) - 10**9 * share) for count, share in zip(counts, declared, strict=True)) < 1
    tiny = (Fraction(1, 10**12), 1 - Fraction(1, 10**12))
    assert Interleaving.compile([Piece(1000, tiny)]).counts(1000).sum() == 1000, "a short stage needs no whole period"
    with pytest.raises(UserError, match=r"stages\[0\].*denominator 1,000,000,000,000.*6 decimals"):
        Interleaving.compile([Piece(10**9, tiny)], "stages[0] (main).mixture")


def test_ramp_pieces_follow_the_line():
    ends = [(Fraction(0), Fraction(1, 2)), (Fraction(1), Fraction(1, 2))]
    pieces = stage_pieces(ends, Staircase.constant(10, 5))
    line = [Fraction(1, 2) * t / 49 for t in range(50)]
    assert [piece.length for piece in pieces] == [5] * 10
    assert sum(piece.length * piece.shares[0] for piece in pieces) == sum(line)
    assert all(piece.shares[0] == sum(line[5 * i : 5 * i + 5]) / 5 for i, piece in enumerate(pieces))


def test_long_ramps_are_rounded_without_drift():
    ends = [(Fraction(1, 10), Fraction(1, 2)), (Fraction(9, 10), Fraction(1, 3)), (Fraction(0), Fraction(1, 6))]
    num_steps, batch_size = 20_011, 256
    pieces = stage_pieces(ends, Staircase.constant(num_steps, batch_size))
    assert len(pieces) == 256
    number = num_steps * batch_size
    for source, (start, stop) in enumerate(ends):
        exact = number * (start + stop) / 2
        assert abs(sum(piece.length * piece.shares[source] for piece in pieces) - exact) <= Fraction(max(p.length for p in pieces), 1024)
    interleaving = Interleaving.compile(pieces)
    counts = interleaving.counts(number)
    target = [sum(piece.length * piece.shares[source] for piece in pieces) for source in range(3)]
    assert interleaving.targets == tuple(target)
    assert max(abs(int(count) - exact) for count, exact in zip(counts, target, strict=True)) < 1


def test_one_source_needs_no_table():
    interleaving = Interleaving.compile([Piece(10**15, (Fraction(1),))])
    source, rank = interleaving.select(np.array([0, 10**15 - 1]))
    assert source.tolist() == [0, 0]
    assert rank.tolist() == [0, 10**15 - 1]
