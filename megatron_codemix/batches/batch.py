"""`Batch`: the one type in which training, validation and checks meet tokens.

A document opens with the end-of-text token that closed the one before it: that token, as an input, belongs to
the new document. So with attention kept inside documents the first token of a document is predicted from
end-of-text alone, its last target is the end-of-text that closes it, every label is a target, and the loss of a
document is what it is for end-of-text + document alone (docs/decisions/012-document-boundaries.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass
class Batch:
    """A micro-batch: B windows of S positions. Tensors are on the CPU unless moved; treat them as read-only."""

    tokens: Tensor
    """int64 (B, S): inputs."""
    labels: Tensor
    """int64 (B, S): the token that follows each input."""
    target_mask: Tensor
    """int64 (B, S): 1 where the label counts, 0 where it does not."""
    loss_weights: Tensor
    """float32 (B, S): factor of each target's loss; the denominator stays the number of targets."""
    positions: Tensor
    """int64 (B, S): 0 … S−1 in every window. Rotary positions see differences only, so a document's place in its
    window does not matter, up to rounding."""
    document_ids: Tensor
    """int64 (B, S): 0, 1, 2 … inside a window; a document opens with the end-of-text before its first token."""
    modality: Tensor
    """uint8 (B, S): shards.Kind of the input token."""
    source_ids: Tensor
    """int64 (B,): index into Plan.sources."""
    window_ids: Tensor
    """int64 (B,): window of the source's split at this sequence length."""
    epochs: Tensor
    """int64 (B,): which reading of the source, from 0."""
    num_padding: Tensor
    """int64 (B,): positions that hold no token of the corpus."""
    target_bytes: Tensor
    """int64 (B,): UTF-8 bytes that the targets stand for."""

    @property
    def num_targets(self) -> int:
        """Target tokens of the batch."""
        return int(self.target_mask.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`."""
        return Batch(**{field.name: getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)})

    def rows(self, start: int, end: int) -> Batch:
        """Windows [start, end) of the batch, sharing its memory."""
        return Batch(**{field.name: getattr(self, field.name)[start:end] for field in fields(self)})


def assemble(
    windows: np.ndarray,
    kinds: np.ndarray,
    *,
    end_of_text_id: int,
    token_num_bytes: np.ndarray,
    source_ids: np.ndarray,
    window_ids: np.ndarray,
    epochs: np.ndarray,
) -> Batch:
    """Windows of S+1 tokens → a batch for next-token prediction on every token.

    windows: int64 (n, S+1); kinds: uint8 (n, S+1); token_num_bytes: (vocab_size,) of any integer dtype;
    source_ids, window_ids, epochs: (n,) integers.
    """
    number, width = windows.shape
    length = width - 1
    labels = np.ascontiguousarray(windows[:, 1:])
    tokens = np.ascontiguousarray(windows[:, :-1])
    return Batch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        target_mask=torch.ones(number, length, dtype=torch.int64),
        loss_weights=torch.ones(number, length, dtype=torch.float32),
        positions=torch.arange(length).repeat(number, 1),
        document_ids=torch.from_numpy(document_ids(tokens, end_of_text_id)),
        modality=torch.from_numpy(np.ascontiguousarray(kinds[:, :-1])),
        source_ids=torch.from_numpy(source_ids.astype(np.int64)),
        window_ids=torch.from_numpy(window_ids.astype(np.int64)),
        epochs=torch.from_numpy(epochs.astype(np.int64)),
        num_padding=torch.zeros(number, dtype=torch.int64),
        target_bytes=torch.from_numpy(token_num_bytes.take(labels).sum(axis=1, dtype=np.int64)),
    )


def document_ids(tokens: np.ndarray, end_of_text_id: int) -> np.ndarray:
    """Number of each input token's document in its window, from 0: int64 (n, S) → int64 (n, S).

    Only the token that closes a document is end-of-text (data preparation writes no other), and it opens the next.
    """
    ids = np.cumsum(tokens == end_of_text_id, axis=1, dtype=np.int64)
    ids -= ids[:, :1].copy()
    return ids
