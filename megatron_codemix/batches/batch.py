"""`Batch`: the one type in which training, validation and checks meet tokens.

A document opens with the end-of-text token that closed the one before it: that token, as an input, belongs to
the new document. So with attention kept inside documents the first token of a document is predicted from
end-of-text alone, its last target is the end-of-text that closes it, every label is a target, and the loss of a
document is what it is for end-of-text + document alone (docs/decisions/012-document-boundaries.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from megatron_codemix.batches.block import Block, number_documents


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
    prefix: Tensor
    """uint8 (B, S): 1 where the input is seen by every position of its document, also by earlier ones."""
    modality: Tensor
    """uint8 (B, S): shards.Kind of the input token."""
    source_ids: Tensor
    """int64 (B,): index into Plan.sources."""
    window_ids: Tensor
    """int64 (B,): window of the source's split at this sequence length."""
    epochs: Tensor
    """int64 (B,): which reading of the source, from 0."""
    num_padding: Tensor
    """int64 (B,): positions whose label is none: windows that are filled up."""
    num_excluded: Tensor
    """int64 (B,): positions whose label is a token that the objective leaves out of the targets."""
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
    objective: Callable[[Block], None] | None = None,
) -> list[Batch]:
    """Windows of S+1 tokens → micro-batches, in order.

    windows: (n, S+1) of the shards' dtype; kinds: uint8 (n, S+1); token_num_bytes: (vocab_size,) of an unsigned
    dtype; source_ids, window_ids, epochs: (n,) integers; micro_batch_size divides n. objective: what changes them first, in place;
    None: next-token prediction on every token.
    """
    number, length = windows.shape[0], windows.shape[1] - 1
    # One allocation for all wide fields: several would be handed back to the system, and faulted in again, each time.
    wide = np.empty((3, number, length), np.int64)
    tokens, labels, documents = wide
    number_documents(windows[:, :-1], end_of_text_id, documents)
    block = Block(windows, kinds, source_ids, window_ids, epochs, documents)
    if objective is not None:
        objective(block)
    tokens[...] = block.seen
    labels[...] = windows[:, 1:]
    targets, padding, excluded = _targets(block)
    label_bytes = token_num_bytes.take(labels)
    target_bytes = (label_bytes if objective is None else label_bytes * targets).sum(axis=1, dtype=np.uint32)
    narrow = np.stack([source_ids, window_ids, epochs, padding, excluded, target_bytes]).astype(np.int64)
    weights = np.ones((number, length), np.float32) if block.weights is None else np.ascontiguousarray(block.weights[:, 1:])
    prefix = np.zeros((number, length), np.uint8) if block.prefix is None else block.prefix
    modality = np.ascontiguousarray(kinds[:, :-1])
    positions = torch.arange(length).expand(micro_batch_size, length)
    batches = []
    for start in range(0, number, micro_batch_size):
        rows = slice(start, start + micro_batch_size)
        source, window, epoch, pads, left_out, num_bytes = map(torch.from_numpy, narrow[:, rows])
        batches.append(
            Batch(
                tokens=torch.from_numpy(tokens[rows]),
                labels=torch.from_numpy(labels[rows]),
                target_mask=torch.from_numpy(targets[rows]),
                loss_weights=torch.from_numpy(weights[rows]),
                positions=positions,
                document_ids=torch.from_numpy(documents[rows]),
                prefix=torch.from_numpy(prefix[rows]),
                modality=torch.from_numpy(modality[rows]),
                source_ids=source,
                window_ids=window,
                epochs=epoch,
                num_padding=pads,
                num_excluded=left_out,
                target_bytes=num_bytes,
            )
        )
    return batches


def _targets(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 (n, S): 1 where the label counts; integers (n,): labels that are padding, and others that do not count."""
    number, length = block.document_ids.shape
    targets = np.ones((number, length), np.uint8)
    nothing = np.zeros(number, np.int64)
    padding = nothing if block.padding is None else block.padding[:, 1:].sum(axis=1)
    if block.padding is not None:
        targets[block.padding[:, 1:]] = 0
    if block.excluded is None:
        return targets, padding, nothing
    left_out = block.excluded[:, 1:] if block.padding is None else block.excluded[:, 1:] & ~block.padding[:, 1:]
    targets[left_out] = 0
    return targets, padding, left_out.sum(axis=1)
