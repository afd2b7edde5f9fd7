"""Which source each sample of a stage comes from: the chairman-assignment rule, with random access.

Declared: a share for every source and every sample; T_i(t) is the exact sum of source i's shares over the
first t samples. Chosen: one source per sample, so that the count A_i(t) obeys, at every prefix t,

    |A_i(t) - T_i(t)| <= c,    c = 1 - 1/(2k - 2) < 1    for k sources

(R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980; c is the best possible).
The n-th sample of a source may be drawn from the first t with T_i(t) >= n - c on and must be drawn no
later than the first t with T_i(t) > n - 1 + c. Of those that may, the earliest deadline goes first;
Tijdeman's theorem says that no deadline is missed. Always drawing the source with the largest deficit
is simpler and breaks the bound from 6 sources on.

Shares are constant rationals on pieces (a constant stage is one piece, a ramp many). All arithmetic is on
integers and fractions. Within a piece the order becomes periodic with the common denominator q of its
shares: two states that run over the same windows of time lose one difference at every deadline, so after
at most k periods the state equals the state one period before. The compiler detects that, stores one
period, jumps to where the next piece begins to matter, and goes on. What is stored is bounded by
(k + 4)·q per piece, and does not grow with the number of samples.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from megatron_codemix.errors import UserError

MAX_TABLE = 1 << 23
"""Most pattern entries that one stage may need (8.4 million: seconds to compute, 48 MiB to keep)."""

_NEVER = 1 << 48
_CHUNK = 1 << 16


class Piece(NamedTuple):
    """A stretch of samples with constant shares."""

    length: int
    shares: tuple[Fraction, ...]


def bound(num_sources: int) -> Fraction:
    """c of the rule: largest distance of a count from its exact target, in samples."""
    return Fraction(2 * num_sources - 3, 2 * num_sources - 2) if num_sources > 1 else Fraction(0)


class _Windows:
    """The window of time in which the n-th sample of each source may be drawn."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.slack = bound(len(pieces[0].shares))
        self.starts = [0]
        self.targets = [[Fraction(0)] for _ in pieces[0].shares]
        for piece in pieces:
            self.starts.append(self.starts[-1] + piece.length)
            for target, share in zip(self.targets, piece.shares, strict=True):
                target.append(target[-1] + share * piece.length)

    def may(self, source: int, piece: int, offset: int) -> int:
        """How many samples of `source` may have been drawn after `offset` samples of `piece`."""
        return math.floor(self.targets[source][piece] + self.pieces[piece].shares[source] * offset + self.slack)

    def deadline(self, source: int, n: int) -> int:
        """The sample (1-based, over all pieces) by which the n-th of `source` must be drawn.

        Behind the last piece its shares are taken to go on, so that an order never depends on what follows it.
        """
        limit = n - 1 + self.slack
        piece = min(bisect_right(self.targets[source], limit), len(self.pieces)) - 1
        share = self.pieces[piece].shares[source]
        if not share:
            return _NEVER
        return self.starts[piece] + math.floor((limit - self.targets[source][piece]) / share) + 1

    def jobs(self, source: int, piece: int, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last allowed sample (1-based from `offset`; over all pieces) of those that become allowed in a chunk."""
        low, high = self.may(source, piece, offset), self.may(source, piece, offset + length)
        base, share, slack = self.targets[source][piece], self.pieces[piece].shares[source], self.slack
        if low == high:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        unit = math.lcm(base.denominator, share.denominator, slack.denominator)
        whole = math.floor(base)
        start, slope, width = int((base - whole) * unit), int(share * unit), int(slack * unit)
        exact = (high - whole + 2) * unit < 1 << 62
        n = np.arange(low + 1 - whole, high + 1 - whole).astype(np.int64 if exact else object)
        first = -((width + start - n * unit) // slope)
        last = ((n - 1) * unit + width - start) // slope + 1
        first, last = first.astype(np.int64) - offset, last.astype(np.int64) + self.starts[piece]
        if piece + 1 < len(self.pieces):
            for beyond in np.flatnonzero(last > self.starts[piece + 1]):
                last[beyond] = self.deadline(source, low + 1 + int(beyond))
        return first, last


class _Compiler:
    """Plays the rule forward and writes down segments: patterns, each repeated some whole or partial times."""

    def __init__(self, pieces: Sequence[Piece], where: str) -> None:
        self.pieces, self.where = pieces, where
        self.windows = _Windows(pieces)
        self.num_sources = len(pieces[0].shares)
        self.counts = np.zeros(self.num_sources, np.int64)
        self.heap: list[int] = []  # deadline · k + source of every sample that may be drawn and was not
        self.segments: list[tuple[np.ndarray, int]] = []
        self.plain: list[np.ndarray] = []
        self.entries = 0

    def _play(self, piece: int, offset: int, length: int) -> tuple[np.ndarray, int]:
        """Sources of the next `length` samples, and how far ahead of a deadline any of them was drawn."""
        k = self.num_sources
        firsts, keys = [], []
        for source in range(k):
            first, last = self.windows.jobs(source, piece, offset, length)
            firsts.append(first)
            keys.append(last * k + source)
        first, key = np.concatenate(firsts), np.concatenate(keys)
        arrivals = np.bincount(first - 1, minlength=length).tolist()
        queue = iter(key[np.argsort(first, kind="stable")].tolist())
        heap, drawn = self.heap, []
        push, pop, pushpop = heapq.heappush, heapq.heappop, heapq.heappushpop
        for arriving in arrivals:
            if arriving == 1:
                drawn.append(pushpop(heap, next(queue)))
            else:
                for _ in range(arriving):
                    push(heap, next(queue))
                drawn.append(pop(heap))
        done = np.array(drawn, np.int64)
        ahead = done // k - (self.windows.starts[piece] + offset + np.arange(1, length + 1))
        assert ahead.min() >= 0, "the chairman-assignment rule missed a deadline"
        return (done % k).astype(np.uint16), int(ahead.max())

    def _rebuild(self, piece: int, offset: int) -> None:
        """The heap as it stands after `offset` samples of `piece`, from the counts alone."""
        self.heap = []
        for source, count in enumerate(self.counts.tolist()):
            for n in range(count + 1, self.windows.may(source, piece, offset) + 1):
                self.heap.append(self.windows.deadline(source, n) * self.num_sources + source)
        heapq.heapify(self.heap)

    def _flush(self) -> None:
        if self.plain:
            pattern = np.concatenate(self.plain)
            self.segments.append((pattern, len(pattern)))
            self.plain = []

    def _period(self, piece: int, offset: int, length: int) -> tuple[np.ndarray, int]:
        self.entries += length
        if self.entries > MAX_TABLE:
            denominator = math.lcm(*(share.denominator for share in self.pieces[piece].shares))
            raise UserError(
                f"{self.where}: the shares have the common denominator {denominator:,}, too large to interleave exactly; "
                "write them with at most 6 decimals, or as fractions such as '1/3'"
            )
        chunks = [self._play(piece, offset + at, min(_CHUNK, length - at)) for at in range(0, length, _CHUNK)]
        return np.concatenate([sources for sources, _ in chunks]), max(ahead for _, ahead in chunks)

    def compile_piece(self, index: int) -> None:
        piece = self.pieces[index]
        period = math.lcm(*(share.denominator for share in piece.shares))
        per_period = np.array([int(share * period) for share in piece.shares]) if period <= piece.length else None
        done = 0
        while done < piece.length:
            length = min(period, piece.length - done)
            pattern, ahead = self._period(index, done, length)
            drawn = np.bincount(pattern, minlength=self.num_sources)
            done += length
            self.counts += drawn
            repeats = 0
            if per_period is not None and length == period and (drawn == per_period).all():
                # As many deadlines later as lie inside the piece nothing behind it can have a say.
                horizon = ahead if index + 1 < len(self.pieces) else 0
                repeats = max(0, (piece.length - done - horizon) // period)
            if not repeats:
                self.plain.append(pattern)
                continue
            self._flush()
            self.segments.append((pattern, period * (1 + repeats)))
            done += repeats * period
            self.counts += repeats * drawn
            self._rebuild(index, done)


class Interleaving:
    """The compiled order of sources of one stage. Immutable; access costs the same at every position."""

    def __init__(self, segments: Sequence[tuple[np.ndarray, int]], targets: Sequence[Fraction]) -> None:
        num_sources = self.num_sources = len(targets)
        self.targets = tuple(targets)
        """Exact sum of each source's shares over the stage, in samples."""
        lengths = np.array([length for _, length in segments], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._periods = np.array([len(pattern) for pattern, _ in segments], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._periods)])[:-1]
        self._pattern = np.concatenate([pattern for pattern, _ in segments])
        self._ranks = np.concatenate([_ranks(pattern) for pattern, _ in segments])
        self._per_period = np.stack([np.bincount(pattern, minlength=num_sources) for pattern, _ in segments]).astype(np.int64)
        self._before = np.zeros((len(segments) + 1, num_sources), np.int64)
        for index, (pattern, length) in enumerate(segments):
            whole, rest = divmod(length, len(pattern))
            drawn = whole * self._per_period[index] + np.bincount(pattern[:rest], minlength=num_sources)
            self._before[index + 1] = self._before[index] + drawn

    @classmethod
    def compile(cls, pieces: Sequence[Piece], where: str = "mixture") -> Interleaving:
        """The order of the pieces' samples under the rule above; `where` names the stage in errors.

        Every piece gives the same number of sources; its shares sum to exactly 1.
        Raises UserError when the shares' common denominator needs more than MAX_TABLE entries.
        """
        pieces = [piece for piece in pieces if piece.length]
        assert pieces, "a stage has at least one sample"
        assert all(sum(piece.shares) == 1 and min(piece.shares) >= 0 for piece in pieces), "shares sum to 1"
        num_sources = len(pieces[0].shares)
        if num_sources == 1:
            num_samples = sum(piece.length for piece in pieces)
            return cls([(np.zeros(1, np.uint16), num_samples)], [Fraction(num_samples)])
        compiler = _Compiler(pieces, where)
        for index in range(len(pieces)):
            compiler.compile_piece(index)
        compiler._flush()
        return cls(compiler.segments, [target[-1] for target in compiler.windows.targets])

    @property
    def num_samples(self) -> int:
        """Samples of the stage."""
        return int(self._starts[-1])

    @property
    def table_size(self) -> int:
        """Stored pattern entries."""
        return len(self._pattern)

    def select(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 positions (n,) → source (n,) int64 and how many samples of it come before, in the stage (n,) int64."""
        segment = np.searchsorted(self._starts, positions, side="right") - 1
        repeat, phase = np.divmod(positions - self._starts[segment], self._periods[segment])
        entry = self._offsets[segment] + phase
        source = self._pattern[entry].astype(np.int64)
        rank = self._before[segment, source] + repeat * self._per_period[segment, source] + self._ranks[entry]
        return source, rank

    def counts(self, position: int) -> np.ndarray:
        """Samples of each source among the first `position` of the stage: (num_sources,) int64."""
        if position >= self.num_samples:
            assert position == self.num_samples, "position lies in the stage"
            return self._before[-1].copy()
        segment = int(np.searchsorted(self._starts, position, side="right")) - 1
        repeat, phase = divmod(position - int(self._starts[segment]), int(self._periods[segment]))
        start = int(self._offsets[segment])
        partial = np.bincount(self._pattern[start : start + phase], minlength=self.num_sources)
        return self._before[segment] + repeat * self._per_period[segment] + partial


def _ranks(pattern: np.ndarray) -> np.ndarray:
    """For each entry, how many earlier entries of the pattern name the same source."""
    order = np.argsort(pattern, kind="stable")
    group_sizes = np.bincount(pattern)
    firsts = np.concatenate([[0], np.cumsum(group_sizes)])[:-1]
    ranks = np.empty(len(pattern), np.int32)
    ranks[order] = np.arange(len(pattern)) - np.repeat(firsts, group_sizes)
    return ranks
