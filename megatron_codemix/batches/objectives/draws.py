"""Random numbers of objectives: functions of (data seed, part, source name, epoch, window) and of a place in the window.

SplitMix64 (Steele, Lea and Flood 2014) as a counter-based generator: draw i of a window is the generator's i-th output from the
window's key. So all windows of a block are drawn at once, and any draw can be had without those before it.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from megatron_codemix.mixture.ledger import finalise, mix

_STEP = np.uint64(0x9E3779B97F4A7C15)


class Windows(Protocol):
    """Which windows these are; integers (n,) each."""

    source_ids: np.ndarray
    window_ids: np.ndarray
    epochs: np.ndarray


def window_keys(seed: int, part: str, sources: tuple[str, ...], windows: Windows) -> np.ndarray:
    """uint64 (n,): the key of each window for one part of an objective."""
    named = (hashlib.sha256("\0".join(("objective", part, str(seed), name)).encode()).digest() for name in sources)
    bases = np.array([int.from_bytes(digest[:8], "little") for digest in named], np.uint64)
    return finalise(bases[np.asarray(windows.source_ids)] ^ mix(windows.epochs, windows.window_ids))


def uniform(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), of 53 bits: draw `places` of the generators `keys` (uint64), broadcast against each other."""
    with np.errstate(over="ignore"):
        states = keys + places.astype(np.uint64) * _STEP
    return (finalise(states) >> np.uint64(11)) * 2.0**-53
