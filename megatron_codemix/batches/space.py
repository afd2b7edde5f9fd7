"""Sample spaces: how a source's tokens are cut into numbered samples."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from megatron_codemix.shards import SplitReader


class SampleSpace(Protocol):
    """Samples 0 … num_samples − 1 of one source at one sequence length."""

    sequence_length: int

    @property
    def num_samples(self) -> int:
        """How many there are; the plan permutes exactly these."""
        ...

    def read(self, samples: np.ndarray, tokens: np.ndarray, kinds: np.ndarray) -> None:
        """Write samples (n,) int64 into tokens (n, S+1), of the shards' dtype or wider, and kinds (n, S+1) uint8."""
        ...


class WindowSpace:
    """Sample i is window i of a split: S inputs and the token behind them. Windows ignore document bounds."""

    def __init__(self, reader: SplitReader, sequence_length: int) -> None:
        self.reader = reader
        self.sequence_length = sequence_length

    @property
    def num_samples(self) -> int:
        """Windows of the split."""
        return self.reader.num_windows(self.sequence_length)

    def read(self, samples: np.ndarray, tokens: np.ndarray, kinds: np.ndarray) -> None:
        """Write windows (n,) int64 into tokens (n, S+1), of the shards' dtype or wider, and kinds (n, S+1) uint8."""
        self.reader.read_into(samples, self.sequence_length, tokens)
        self.reader.kinds_into(samples, self.sequence_length, kinds)
