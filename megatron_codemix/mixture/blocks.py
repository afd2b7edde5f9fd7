"""`order: blocks`: shards permuted, windows permuted inside a block of neighbouring shards.

A random order over all windows makes a file system answer small reads all over the corpus, and an object store useless.
Here the shards of a source are permuted by the epoch's key, every K neighbours of that order make a block, and the windows of a
block are permuted by a key of its own. All windows of an epoch are read once, a block at a time: whoever knows the order can bring
whole shards near before they are needed (docs/reading.md).
"""

from __future__ import annotations

import hashlib

import numpy as np

from megatron_codemix.mixture.permutation import Permutation, order_key


class BlockOrder:
    """The order of one epoch of one source. Holds two numbers per shard; a place is looked up by a binary search."""

    def __init__(self, shard_windows: np.ndarray, block_shards: int, key: bytes) -> None:
        """shard_windows: (M,) int64, windows of each shard; block_shards: K; key: of the epoch, from `order_key`."""
        shard_windows = np.asarray(shard_windows, np.int64)
        self._key, self._per_block = key, block_shards
        self._permutations: dict[int, Permutation] = {}
        self._shards = Permutation(len(shard_windows), _derived(key, "shards"))(np.arange(len(shard_windows)))
        firsts = np.cumsum(shard_windows) - shard_windows
        self._first_window = firsts[self._shards]
        """First window of each shard, in the order in which shards are read."""
        self._before = np.concatenate([[0], np.cumsum(shard_windows[self._shards])])
        """Windows before each shard, in that order, and the total."""
        self._blocks = self._before[::block_shards]
        """First place of each block."""
        self.n = int(self._before[-1])
        """Windows of the epoch."""

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Window at each place of the epoch: int64 array of any shape with values in [0, n) → int64 of the same shape."""
        indices = np.asarray(indices, np.int64)
        flat = indices.ravel()
        if flat.size and (flat.min() < 0 or flat.max() >= self.n):
            raise ValueError(f"an index lies outside [0, {self.n})")
        block = self._blocks.searchsorted(flat, "right") - 1
        place = np.empty_like(flat)
        for number in np.unique(block).tolist():
            here = np.flatnonzero(block == number)
            first, end = self._bounds(number)
            place[here] = first + self._inside(number, end - first)(flat[here] - first)
        shard = self._before.searchsorted(place, "right") - 1
        return (self._first_window[shard] + place - self._before[shard]).reshape(indices.shape)

    def _bounds(self, block: int) -> tuple[int, int]:
        """(first place, end) of a block."""
        end = min((block + 1) * self._per_block, len(self._shards))
        return int(self._before[block * self._per_block]), int(self._before[end])

    def _inside(self, block: int, size: int) -> Permutation:
        found = self._permutations.get(block)
        if found is None:
            while len(self._permutations) >= 8:
                del self._permutations[next(iter(self._permutations))]
            found = self._permutations[block] = Permutation(size, _derived(self._key, f"block {block}"))
        return found


def _derived(key: bytes, what: str) -> bytes:
    """A key of its own for a part of an epoch's order."""
    return hashlib.blake2b(what.encode(), digest_size=64, key=key).digest()


class Blocks:
    """The block orders of a run: by source, windows per shard and epoch, the last ones kept."""

    def __init__(self, seed: int, block_shards: int) -> None:
        self.seed, self.block_shards = seed, block_shards
        self._orders: dict[tuple[str, int, int], BlockOrder] = {}

    def order(self, source: str, epoch: int, length: int, shard_windows: np.ndarray) -> BlockOrder:
        """The order of an epoch of `source`, cut at `length` into `shard_windows` windows per shard."""
        key = (source, epoch, length)
        found = self._orders.get(key)
        if found is None:
            while len(self._orders) >= 64:
                del self._orders[next(iter(self._orders))]
            found = self._orders[key] = BlockOrder(shard_windows, self.block_shards, order_key(self.seed, source, epoch))
        return found
