"""How much of the held-out documents also occurs in training, by rules the manifest names.

- A held-out document that equals a training document but for ASCII whitespace is dropped.
- Of those that stay, the tokens are cut into blocks of 50 from their beginning. Counted are documents of which any
  block, and documents of which at least half of the blocks, occur somewhere in a training document of any source, at
  any place. So every common run of 99 tokens is seen, and shorter ones down to 50 where they cover a block.

Memory depends on the held-out documents alone (8 bytes a block and a table of 2²⁴ flags); training is streamed past.
Blocks are compared by 64-bit hashes: 10¹² training tokens against 10⁷ blocks give an expected 0.5 false matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_codemix.shards import Manifest, SplitReader

BLOCK_TOKENS = 50
DUPLICATE = "equal to a training document but for whitespace"
ANY_BLOCK = f"some block of {BLOCK_TOKENS} tokens occurs in training"
HALF_OF_BLOCKS = f"at least half of the blocks of {BLOCK_TOKENS} tokens occur in training"

_SPAN_TOKENS = BLOCK_TOKENS << 12
_RANGE_PACKS = 16
_FLAG_BITS = 24
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2⁶⁴
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)


def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


class _Hasher:
    """Hashes of runs of BLOCK_TOKENS tokens: Σ table[tᵢ]·bⁱ modulo 2⁶⁴, the same at every place, mixed at the end."""

    def __init__(self, vocab_size: int, longest: int) -> None:
        rng = np.random.Generator(np.random.Philox(key=[0xB10C, vocab_size]))
        self._table = rng.integers(0, 1 << 64, vocab_size, dtype=np.uint64)
        self._powers = _powers(_MULTIPLIER, longest)
        self._inverses = _powers(_INVERSE, longest)

    def runs(self, tokens: np.ndarray, step: int = 1) -> np.ndarray:
        """Hash of the run that begins at 0, step, 2·step … and lies within `tokens`: uint64."""
        if tokens.size < BLOCK_TOKENS:
            return np.empty(0, np.uint64)
        sums = np.zeros(tokens.size + 1, np.uint64)
        np.cumsum(self._table[tokens] * self._powers[: tokens.size], out=sums[1:])
        differences = (sums[BLOCK_TOKENS:] - sums[:-BLOCK_TOKENS])[::step]
        hashes = differences * self._inverses[: tokens.size - BLOCK_TOKENS + 1 : step]
        return hashes ^ (hashes >> np.uint64(29))


@dataclass(frozen=True)
class Blocks:
    """The held-out documents' blocks, sorted, with a table of flags that answers "surely not" quickly."""

    hashes: np.ndarray
    """Sorted, each once: uint64."""
    flags: np.ndarray
    """bool (2²⁴,), indexed by a hash's lowest bits."""
    vocab_size: int

    @classmethod
    def of(cls, documents: Iterable[np.ndarray], vocab_size: int) -> Blocks:
        """documents: tokens of held-out documents, without end of text."""
        hasher = _Hasher(vocab_size, _SPAN_TOKENS)
        found = [np.empty(0, np.uint64)]
        found += [_block_hashes(hasher, tokens) for tokens in documents]
        hashes = np.unique(np.concatenate(found))
        flags = np.zeros(1 << _FLAG_BITS, bool)
        flags[_low_bits(hashes)] = True
        return cls(hashes, flags, vocab_size)

    def index(self, hashes: np.ndarray) -> np.ndarray:
        """Positions in `self.hashes` of those of `hashes` that are in it."""
        candidates = hashes[self.flags[_low_bits(hashes)]]
        if not candidates.size or not self.hashes.size:
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.hashes, candidates), self.hashes.size - 1)
        return np.unique(places[self.hashes[places] == candidates])


def _low_bits(hashes: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64((1 << _FLAG_BITS) - 1)).astype(np.int64)


def _block_hashes(hasher: _Hasher, tokens: np.ndarray) -> np.ndarray:
    """Hashes of the whole blocks of one document, from its beginning."""
    spans = (hasher.runs(tokens[start : start + _SPAN_TOKENS], BLOCK_TOKENS) for start in range(0, tokens.size, _SPAN_TOKENS))
    return np.concatenate([np.empty(0, np.uint64), *spans])


@dataclass(frozen=True)
class PackRange:
    """Some packs of a training split."""

    folder: Path
    first: int
    end: int
    num_tokens: int


def pack_ranges(folder: Path, manifest: Manifest) -> Iterator[PackRange]:
    """The split in `folder` in ranges of some 16 packs, which can be looked through apart."""
    first = 0
    for shard in manifest.shards:
        for start in range(0, shard.num_packs, _RANGE_PACKS):
            packs = min(_RANGE_PACKS, shard.num_packs - start)
            yield PackRange(folder, first + start, first + start + packs, shard.num_tokens * packs // shard.num_packs)
        first += shard.num_packs


class _Worker:
    """What a process keeps between ranges."""

    blocks: Blocks
    hasher: _Hasher


def start_worker(blocks: Blocks) -> None:
    """Prepare this process; see `workers.ordered_map`."""
    _Worker.blocks = blocks
    _Worker.hasher = _Hasher(blocks.vocab_size, _SPAN_TOKENS)


def blocks_seen(packs: PackRange) -> np.ndarray:
    """Which of the held-out blocks occur in some packs of a training split: positions in `Blocks.hashes`."""
    found = [np.empty(0, np.int64)]
    for pack in islice(SplitReader(packs.folder).packs(), packs.first, packs.end):
        # neighbouring spans overlap, so that no run is lost between them; a run across documents holds an end of text,
        # which no held-out block does
        for start in range(0, pack.tokens.size, _SPAN_TOKENS - BLOCK_TOKENS + 1):
            found.append(_Worker.blocks.index(_Worker.hasher.runs(pack.tokens[start : start + _SPAN_TOKENS])))
    return np.unique(np.concatenate(found))


def count_leakage(documents: Iterable[np.ndarray], blocks: Blocks, seen: np.ndarray) -> dict[str, int]:
    """Rule → how many of the held-out documents also occur in training by it."""
    hasher = _Hasher(blocks.vocab_size, _SPAN_TOKENS)
    counts = {ANY_BLOCK: 0, HALF_OF_BLOCKS: 0}
    for tokens in documents:
        hashes = _block_hashes(hasher, tokens)
        if hashes.size:
            hits = int(np.count_nonzero(seen[np.searchsorted(blocks.hashes, hashes)]))
            counts[ANY_BLOCK] += hits > 0
            counts[HALF_OF_BLOCKS] += 2 * hits >= hashes.size
    return counts
