"""What a part of an objective is given, and what it must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.draws import window_keys
from megatron_codemix.config.objective import rate_of
from megatron_codemix.tokenizer import Tokenizer


@dataclass(frozen=True)
class Context:
    """What all parts of a run's objectives share."""

    tokenizer: Tokenizer
    sources: tuple[str, ...]
    """Names, in the order that `Block.source_ids` index."""
    seed: int
    """The run's data seed."""

    def keys(self, block: Block, part: str) -> np.ndarray:
        """uint64 (n,): what a part's draws in each window depend on; independent of step, rank, batch and order."""
        return window_keys(self.seed, part, self.sources, block)

    def rates(self, rate: float | str | Mapping[str, float | str]) -> np.ndarray:
        """float64 (sources,): what a config's rate gives each."""
        return np.array([rate_of(rate, source) for source in self.sources])

    @cached_property
    def is_control(self) -> np.ndarray:
        """bool (vocab_size,): ids that stand for no byte."""
        return self.tokenizer.token_num_bytes == 0


class Part(Protocol):
    """A part of an objective. Built as Part(settings, context), where settings is its config section."""

    def apply(self, block: Block) -> None:
        """Change a block in place; what it does to a window depends on that window (and its draws) alone."""
        ...
