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
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_codemix.shards import Manifest, SplitReader

BLOCK_TOKENS = 50
DUPLICATE = "equal to a training document but for whitespace"
ANY_BLOCK = f"some block of {BLOCK_TOKENS} tokens occurs in training"
HALF_OF_BLOCKS = f"at least half of the blocks of {BLOCK_TOKENS} tokens occur in training"

_PREFIX_TOKENS = 8
_SPAN_TOKENS = 102_400
_STRIDE = 16
_MOST_FLAGS = 1 << 21
_RANGE_PACKS = 16
_FLAG_BITS = 24
_ROW_MULTIPLIERS, _PREFIX_MULTIPLIERS = (
    np.random.Generator(np.random.Philox(key=number)).integers(0, 1 << 64, length, dtype=np.uint64) | np.uint64(1)
    for number, length in ((1, BLOCK_TOKENS), (2, _PREFIX_TOKENS))
)


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """Hash of each row of BLOCK_TOKENS tokens, Σ tᵢ·aᵢ modulo 2⁶⁴ with fixed random odd aᵢ: uint64 (n,)."""
    hashes = rows.astype(np.uint64) @ _ROW_MULTIPLIERS
    return hashes ^ (hashes >> np.uint64(29))


def _prefix_flags(tokens: np.ndarray, stride: int) -> np.ndarray:
    """For every `stride`-th place of `tokens` at which 8 tokens begin: a number below 2²⁴ made of these 8; int64 (⌈(n − 7) / stride⌉,)."""
    # Read as 8-byte words that begin there: 4 tokens of uint16 each, or 2 of uint32.
    per_word = 8 // tokens.itemsize
    length = -(-(tokens.size - _PREFIX_TOKENS + 1) // stride)
    mixed = np.zeros(length, np.uint64)
    for number, start in enumerate(range(0, _PREFIX_TOKENS, per_word)):
        words = np.ndarray((length,), "<u8", buffer=tokens, offset=start * tokens.itemsize, strides=(stride * tokens.itemsize,))
        mixed += words * _PREFIX_MULTIPLIERS[number]
    return (mixed >> np.uint64(64 - _FLAG_BITS)).view(np.int64)


def _whole_blocks(tokens: np.ndarray) -> np.ndarray:
    """The blocks of one document, from its beginning: (n, BLOCK_TOKENS)."""
    count = tokens.size // BLOCK_TOKENS
    return tokens[: count * BLOCK_TOKENS].reshape(count, BLOCK_TOKENS)


@dataclass(frozen=True)
class Blocks:
    """The held-out documents' blocks, with a table that says "surely none" of most places at once.

    A block that occurs in training has 8 tokens that begin at a place divisible by `stride` there, and at one of its own first
    `stride` places. So only those places of training are looked at, and a hit has `stride` possible beginnings.
    """

    hashes: np.ndarray
    """Sorted, each once: uint64."""
    flags: np.ndarray
    """uint16 (2²⁴,): bit j of a value of `_prefix_flags` says that some block has it at its place j < `stride`."""
    stride: int

    @classmethod
    def of(cls, documents: Iterable[np.ndarray], dtype: np.dtype) -> Blocks:
        """documents: tokens of held-out documents, without end of text. dtype: that of the shards."""
        hashes = [np.empty(0, np.uint64)]
        flags = np.zeros(1 << _FLAG_BITS, np.uint16)
        stride, count = _STRIDE, 0
        for tokens in documents:
            rows = np.ascontiguousarray(_whole_blocks(tokens), dtype)
            hashes.append(_row_hashes(rows))
            if rows.size:
                count += len(rows)
                # with many blocks a table of so many of their places would say "perhaps" everywhere
                while stride > 1 and count * stride > _MOST_FLAGS:
                    stride //= 2
                values = _prefix_flags(rows.reshape(-1), 1)
                for place in range(stride):
                    flags[values[place::BLOCK_TOKENS]] |= np.uint16(1 << place)
        return cls(np.unique(np.concatenate(hashes)), flags, stride)

    def places(self, tokens: np.ndarray) -> np.ndarray:
        """Positions in `self.hashes` of the blocks that occur in `tokens` (contiguous, in the shards' dtype) at any place."""
        if tokens.size < BLOCK_TOKENS or not self.hashes.size:
            return np.empty(0, np.int64)
        bits = self.flags[_prefix_flags(tokens, self.stride)]
        hits = np.flatnonzero(bits)
        bits = bits[hits]
        starts = np.concatenate([hits[(bits >> place) & 1 == 1] * self.stride - place for place in range(self.stride)])
        starts = starts[(starts >= 0) & (starts <= tokens.size - BLOCK_TOKENS)]
        hashes = _row_hashes(np.lib.stride_tricks.sliding_window_view(tokens, BLOCK_TOKENS)[starts])
        found = np.minimum(np.searchsorted(self.hashes, hashes), self.hashes.size - 1)
        return np.unique(found[self.hashes[found] == hashes])

    def save(self, path: Path) -> None:
        """Write the two arrays for other processes."""
        values = np.flatnonzero(self.flags).astype(np.uint32)
        np.savez(path, hashes=self.hashes, values=values, bits=self.flags[values], stride=self.stride)

    @classmethod
    def load(cls, path: Path) -> Blocks:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            flags = np.zeros(1 << _FLAG_BITS, np.uint16)
            flags[arrays["values"]] = arrays["bits"]
            return cls(arrays["hashes"], flags, int(arrays["stride"]))


@dataclass(frozen=True)
class PackRange:
    """Some packs of a training split, to be searched for the blocks saved in a file."""

    blocks: Path
    folder: Path
    first: int
    end: int
    num_tokens: int


def pack_ranges(blocks: Path, folder: Path, manifest: Manifest) -> Iterator[PackRange]:
    """The split in `folder` in ranges of some 16 packs, which can be searched apart."""
    first = 0
    for shard in manifest.shards:
        for start in range(0, shard.num_packs, _RANGE_PACKS):
            packs = min(_RANGE_PACKS, shard.num_packs - start)
            yield PackRange(blocks, folder, first + start, first + start + packs, shard.num_tokens * packs // shard.num_packs)
        first += shard.num_packs


# A process searches many ranges for the same blocks: they are read once.
_load_once = lru_cache(maxsize=1)(Blocks.load)


def blocks_seen(packs: PackRange) -> np.ndarray:
    """Which of the held-out blocks occur in some packs of a training split: positions in `Blocks.hashes`."""
    blocks = _load_once(packs.blocks)
    found = [np.empty(0, np.int64)]
    for pack in islice(SplitReader(packs.folder).packs(), packs.first, packs.end):
        # neighbouring spans overlap, so that no run is lost between them; a run across documents holds an end of text,
        # which no held-out block does
        for start in range(0, pack.tokens.size, _SPAN_TOKENS - BLOCK_TOKENS + 1):
            found.append(blocks.places(pack.tokens[start : start + _SPAN_TOKENS]))
    return np.unique(np.concatenate(found))


class Leakage:
    """Counts held-out documents that also occur in training."""

    def __init__(self, blocks: Blocks, seen: np.ndarray) -> None:
        """seen: bool, one for each hash of `blocks`."""
        self._blocks, self._seen = blocks, seen
        self.counts = {ANY_BLOCK: 0, HALF_OF_BLOCKS: 0}
        """Rule → documents."""

    def add(self, tokens: np.ndarray) -> None:
        """Count a document, without end of text."""
        hashes = _row_hashes(_whole_blocks(tokens))
        if hashes.size:
            hits = int(np.count_nonzero(self._seen[np.searchsorted(self._blocks.hashes, hashes)]))
            self.counts[ANY_BLOCK] += hits > 0
            self.counts[HALF_OF_BLOCKS] += 2 * hits >= hashes.size
