"""Shingles of a text, their MinHash signature, and their exact Jaccard similarity.

Broder 1997, "On the resemblance and containment of documents". The hash functions are rensa's RMinHash, algorithm version 2:
docs/decisions/081-near-duplicates.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

from data_prep.words import windows, word_blocks
from megatron_codemix.config import NearDuplicates

_ALGORITHM = 2
_EMPTY = np.uint32(2**32 - 1)
_MOST_SHINGLES = 1 << 20


class Signer:
    """Makes MinHash signatures. Made anew in every process; equal settings give equal signatures.

    Raises RuntimeError when the installed rensa computes other signatures than those that documents of earlier chunks may have.
    """

    def __init__(self, settings: NearDuplicates) -> None:
        if RMinHash.ALGORITHM_VERSION != _ALGORITHM:
            raise RuntimeError(f"rensa: RMinHash is of version {RMinHash.ALGORITHM_VERSION}, not {_ALGORITHM}; install the pinned version")
        self._words, self._permutations = settings.shingle_words, settings.permutations
        self._seed = settings.seed % 2**64

    def sign(self, text: str) -> np.ndarray:
        """Signature (permutations,) uint32 of a text; `2³²−1` in all places where it has no words.

        Of two texts the expected share of equal places is the Jaccard similarity of their sets of shingles. Memory is bounded
        for texts of any length.
        """
        signature = np.full(self._permutations, _EMPTY, np.uint32)
        for hashes in _shingle_blocks(text, self._words):
            digest = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], self._permutations, self._seed)
            np.minimum(signature, np.array(digest.to_rows()[0], np.uint32), out=signature)
        return signature


def is_empty(signatures: np.ndarray) -> np.ndarray:
    """Which of (n, permutations) signatures are those of texts without words: (n,) bool."""
    return (signatures == _EMPTY).all(axis=1)


class ShingleSet(NamedTuple):
    """The set of a text's shingles, or the part of it that a threshold on the hash leaves: a sample keyed by the hash."""

    hashes: np.ndarray
    """(n,) uint64, ascending, each once."""
    bound: int
    """All shingles up to this hash are there."""


def shingle_set(text: str, size: int, most: int = _MOST_SHINGLES) -> ShingleSet:
    """The shingles of `size` words of a text; of more than `most` the ones with the smallest hashes.

    A text of fewer words is one shingle; one without words has none.
    """
    parts: list[np.ndarray] = []
    bound = 2**64 - 1
    for hashes in _shingle_blocks(text, size):
        parts.append(np.unique(hashes if bound == 2**64 - 1 else hashes[hashes <= np.uint64(bound)]))
        if sum(map(len, parts)) > 2 * most:
            parts, bound = _smallest(parts, most, bound)
    parts, bound = _smallest(parts, most, bound)
    return ShingleSet(parts[0], bound)


def jaccard(left: ShingleSet, right: ShingleSet) -> float:
    """|left ∩ right| / |left ∪ right|: exact for whole sets; of samples, that of the part both are complete in. 0 for empty sets."""
    bound = np.uint64(min(left.bound, right.bound))
    first, second = (one.hashes[: np.searchsorted(one.hashes, bound, "right")] for one in (left, right))
    common = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - common
    return common / union if union else 0.0


def _shingle_blocks(text: str, size: int) -> Iterator[np.ndarray]:
    """Hashes (n,) uint64 of the text's shingles, block by block; together at least one where there are words."""
    empty, last = True, None
    for block in word_blocks(text, overlap=size - 1):
        last = windows(block.hashes, size)
        if len(last):
            empty = False
            yield last
        else:
            last = block.hashes
    if empty and last is not None:
        yield windows(last, len(last))


def _smallest(parts: list[np.ndarray], most: int, bound: int) -> tuple[list[np.ndarray], int]:
    hashes = parts[0] if len(parts) == 1 else np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))
    if len(hashes) > most:
        hashes = hashes[:most].copy()
        bound = int(hashes[-1])
    return [hashes], bound
