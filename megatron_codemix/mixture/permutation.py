"""A keyed permutation of [0, n): which window is the j-th of an epoch, without storing an order.

The order of an epoch is a block cipher on b = bit_length(n - 1) bits whose values outside [0, n) are
walked on until they fall inside (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002). Each round is a bijection of b-bit numbers: add a key, multiply by an odd key, fold the
upper half onto the lower one. Memory is O(1) in n; the time of one value is geometric with mean < 2 walks.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

_ROUNDS = 8


def order_key(seed: int, source: str, epoch: int) -> bytes:
    """The key of one epoch of one source: 64 rounds' worth of entropy from (data seed, source name, epoch).

    Neither the stage nor the source's place in any list enters, so runs that differ only in shares
    read the same prefix of each source.
    """
    return hashlib.blake2b(f"codemix order 1\n{seed}\n{source}\n{epoch}".encode(), digest_size=64).digest()


class Permutation:
    """A bijection of [0, n), chosen by `key` (64 bytes from `order_key`)."""

    def __init__(self, n: int, key: bytes) -> None:
        """n: size of the domain, at least 1 and below 2^62."""
        if not 1 <= n < 1 << 62:
            raise ValueError(f"a permutation of {n} items is not possible; n must be from 1 to 2^62")
        self.n = n
        bits = max(1, (n - 1).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        self._shift = np.uint64((bits + 1) // 2)
        stream = b"".join(hashlib.blake2b(key, digest_size=64, salt=bytes([block])).digest() for block in range(_ROUNDS * 16 // 64))
        words = np.frombuffer(stream, "<u8").astype(np.uint64).reshape(_ROUNDS, 2)
        self._keys = [(add & self._mask, odd | np.uint64(1)) for add, odd in words]

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        mask, shift = self._mask, self._shift
        for add, odd in self._keys:
            x = ((x + add) * odd) & mask  # wraps modulo 2^64, of which 2^bits is a divisor
            x ^= x >> shift
        return x

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Image of each index: int64 array of any shape with values in [0, n) → int64 of the same shape."""
        indices = np.asarray(indices)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n):
            raise ValueError(f"an index lies outside [0, {self.n})")
        out = self._encrypt(indices.astype(np.uint64).ravel())
        outside = np.flatnonzero(out >= self.n)
        while outside.size:
            walked = self._encrypt(out[outside])
            out[outside] = walked
            outside = outside[walked >= self.n]
        return out.astype(np.int64).reshape(indices.shape)


@functools.lru_cache(maxsize=256)
def epoch_order(n: int, seed: int, source: str, epoch: int) -> Permutation:
    """The order in which `epoch` of `source` reads its n windows."""
    return Permutation(n, order_key(seed, source, epoch))
