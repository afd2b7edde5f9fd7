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
    """A micro-batch: B windows of S positions. Tensors are on the CPU unless moved; only `positions` is shared between batches."""

    tokens: Tensor
    """int64 (B, S): inputs."""
    labels: Tensor
    """int64 (B, S): the token that follows each input."""
    target_mask: Tensor
    """uint8 (B, S): 1 where the label counts, 0 where it does not. Sums are int64."""
    loss_weights: Tensor
    """float32 (B, S): factor of each target's loss; the denominator stays the number of targets."""
    positions: Tensor
    """int64 (B, S): 0 … S−1 in every window; one row, expanded, not to be written to. Rotary positions see
    differences only, so a document's place in its window does not matter, up to rounding."""
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
        return Batch(**{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _FIELDS})

    def rows(self, start: int, end: int) -> Batch:
        """Windows [start, end) of the batch, sharing its memory."""
        return Batch(**{name: getattr(self, name)[start:end] for name in _FIELDS})


_FIELDS = tuple(field.name for field in fields(Batch))


def assemble(
    windows: np.ndarray,
    kinds: np.ndarray,
    *,
    end_of_text_id: int,
    token_num_bytes: np.ndarray,
    source_ids: np.ndarray,
    window_ids: np.ndarray,
    epochs: np.ndarray,
    micro_batch_size: int,
) -> list[Batch]:
    """Windows of S+1 tokens → micro-batches, in order, for next-token prediction on every token.

    windows: (n, S+1) of the shards' dtype; kinds: uint8 (n, S+1); token_num_bytes: (vocab_size,) of an unsigned
    dtype; source_ids, window_ids, epochs: (n,) integers; micro_batch_size divides n.
    """
    number, length = windows.shape[0], windows.shape[1] - 1
    # One allocation for all wide fields: several would be handed back to the system, and faulted in again, each time.
    wide = np.empty((3, number, length), np.int64)
    tokens, labels, documents = wide
    tokens[...] = windows[:, :-1]
    labels[...] = windows[:, 1:]
    number_documents(windows[:, :-1], end_of_text_id, documents)
    target_bytes = token_num_bytes.take(labels).sum(axis=1, dtype=np.uint32)
    narrow = np.stack([source_ids, window_ids, epochs, np.zeros(number, np.int64), target_bytes]).astype(np.int64)
    weights = np.ones((number, length), np.float32)
    targets = np.ones((number, length), np.uint8)
    modality = np.ascontiguousarray(kinds[:, :-1])
    positions = torch.arange(length).expand(micro_batch_size, length)
    batches = []
    for start in range(0, number, micro_batch_size):
        rows = slice(start, start + micro_batch_size)
        source, window, epoch, padding, num_bytes = map(torch.from_numpy, narrow[:, rows])
        batches.append(
            Batch(
                tokens=torch.from_numpy(tokens[rows]),
                labels=torch.from_numpy(labels[rows]),
                target_mask=torch.from_numpy(targets[rows]),
                loss_weights=torch.from_numpy(weights[rows]),
                positions=positions,
                document_ids=torch.from_numpy(documents[rows]),
                modality=torch.from_numpy(modality[rows]),
                source_ids=source,
                window_ids=window,
                epochs=epoch,
                num_padding=padding,
                target_bytes=num_bytes,
            )
        )
    return batches


def number_documents(tokens: np.ndarray, end_of_text_id: int, out: np.ndarray) -> None:
    """Write the number of each input token's document in its window, from 0: integers (n, S) → int64 (n, S).

    Only the token that closes a document is end-of-text (data preparation writes no other), and it opens the next.
    """
    opens = tokens == end_of_text_id
    opens[:, 0] = False
    np.cumsum(opens, axis=1, dtype=np.int64, out=out)
