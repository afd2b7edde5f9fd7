"""What training, checkpoints and evaluation may ask of an engine, whichever library steps the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from megatron_codemix.pieces import Piece, PieceReader


class TokenBatch(Protocol):
    """The fields of `batches.Batch` that an engine reads; B windows of S positions."""

    tokens: Tensor
    """int64 (B, S)."""
    labels: Tensor
    """int64 (B, S): the token to predict at each position."""
    target_mask: Tensor
    """integer (B, S): 1 where the label counts, 0 where it does not."""
    loss_weights: Tensor
    """float32 (B, S): factor of each target's loss in the objective."""
    positions: Tensor
    """int64 (B, S)."""
    document_ids: Tensor
    """int64 (B, S): equal for neighbours in one document."""

    @property
    def prefix(self) -> Tensor | None:
        """Integer (B, S): 1 where the input is seen by every position of its document, also by earlier ones; None: nowhere."""
        ...


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over the whole global batch: the same on every rank."""

    loss_sum: float
    """Σ weight · loss over the targets, in nats; divided by `target_tokens` it is the objective."""
    target_tokens: int
    """Targets in the global batch."""
    grad_norm: float
    """L2 norm of the objective's gradient before clipping."""
    updated: bool = True
    """Whether the weights were changed: False where `accept` refused."""

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return self.loss_sum / max(self.target_tokens, 1)


Accept = Callable[[StepResult], bool]
"""Asked before the weights change, on every rank, with figures that are the same on all: NaN or infinite where they are on any."""


class Engine(Protocol):
    """A model in training."""

    step: int
    """Steps done, those without an update among them."""
    own_seconds: float
    """Of the last `train_step`, before this rank had to wait for other data-parallel ranks; 0.0 where the engine cannot tell."""
    swap_folder: Path | None
    """Where this rank keeps on disk what has no room in memory, until the engine goes; None: nothing."""

    def train_step(self, batches: Sequence[TokenBatch], learning_rate: float, accept: Accept | None = None) -> StepResult:
        """One optimizer step on this rank's micro-batches of a global batch.

        accept: may refuse the update. Weights and moments then stay as they are, bit for bit, and the step counts as one
        that is passed over (`pass_over`).
        """
        ...

    def pass_over(self) -> None:
        """Count a step without an update: `step` and AdamW's count of updates go on, nothing else changes."""
        ...

    def evaluate(self, batches: Iterable[TokenBatch]) -> tuple[float, int]:
        """Σ loss in nats and the number of targets, over this rank's micro-batches."""
        ...

    def log_probabilities(self, tokens: Tensor, document_ids: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
        """float32 (B, S, vocab_size): natural-log probabilities of the next token after each position.

        Collective; each rank that passes the same tokens gets the same, whole result.
        """
        ...

    def pieces(self) -> list[Piece]:
        """What this rank must save: views of live memory (on the device), valid until the next `train_step`. Not collective."""
        ...

    def load_pieces(self, reader: PieceReader, optimizer: bool = True) -> None:
        """Take over weights and, if asked, moments and step; of any layout, in any form. Every rank calls it."""
        ...
