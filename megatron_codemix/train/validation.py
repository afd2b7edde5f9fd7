"""Loss and bits per byte on each source's validation split.

    loss          = Σ nats of target tokens / target tokens
    bits per byte = Σ nats of target tokens / (ln 2 · Σ UTF-8 bytes those tokens stand for)

The bytes are the targets' own (`Batch.target_bytes`), so windows that begin inside a document need no
correction; end of text costs nats and stands for no byte. Comparable between tokenizers, unlike the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from megatron_codemix.batches import Batch


@dataclass(frozen=True)
class ValidationResult:
    """One source's validation."""

    source: str
    nats: float
    """Sum over target tokens."""
    target_tokens: int
    num_bytes: int
    """UTF-8 bytes the target tokens stand for."""

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.nats / self.target_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the targets."""
        return self.nats / (math.log(2.0) * self.num_bytes)


class Progress(Protocol):
    """What `progress.progress` yields."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """So much more is done."""
        ...


class ByteCounter:
    """Passes batches on and adds up the bytes of their targets."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def counting(self, batches: Iterable[Batch], bar: Progress) -> Iterator[Batch]:
        """Each batch, counted as it is taken; `bar` advances by its windows."""
        for batch in batches:
            self.num_bytes += int(batch.target_bytes.sum())
            yield batch
            bar.advance(len(batch.window_ids))
