"""What megatron-core's schedule calls for each micro-batch: the model's forward pass and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.engine.interface import TokenBatch
from megatron_codemix.kernels import take_rows
from megatron_codemix.parallel.topology import Axis


@dataclass(frozen=True)
class DeviceBatch:
    """What a forward pass needs of a micro-batch, on the device: B windows of S positions, R = S/C of them on each of C
    context-parallel ranks. Each position with its target is on one rank alone, so losses and targets add up over them."""

    tokens: Tensor
    """int64 (B, R)."""
    labels: Tensor
    """int64 (B, R)."""
    target_mask: Tensor
    """integer (B, R)."""
    weights: Tensor
    """float32 (B, R): loss weights, 0 where there is no target."""
    positions: Tensor
    """int64 (B, R)."""
    document_ids: Tensor | None
    """int64 (B, S), of all positions; None where every window is one document (or documents are not masked). Where a document has
    a prefix, int64 (2, B, S): ids, and 1 where a position is seen by all of its document."""

    @classmethod
    def of(cls, batch: TokenBatch, device: torch.device, document_masking: bool, context: Axis | None = None) -> DeviceBatch:
        """Copy what this rank of `context` needs to `device` (None: of one rank, everything).

        Whether there is anything to mask is asked before, on the host and of whole windows, so all ranks agree.
        """
        size, rank = (1, 0) if context is None else (context.size, context.rank)
        ids = batch.document_ids
        packed = document_masking and bool((ids != ids[:, :1]).any())
        if document_masking and batch.prefix is not None and bool(batch.prefix.any()):
            packed, ids = True, torch.stack((ids, batch.prefix.to(ids.dtype)))

        def own(field_BS: Tensor) -> Tensor:
            return take_rows(field_BS, 1, size, rank).to(device)

        return cls(
            tokens=own(batch.tokens),
            labels=own(batch.labels),
            target_mask=own(batch.target_mask),
            weights=own(batch.loss_weights * batch.target_mask),
            positions=own(batch.positions),
            document_ids=ids.to(device) if packed else None,
        )


def training_forward(batches: Iterator[DeviceBatch], model: Any) -> tuple[Tensor, Any]:
    """Schedule callback: returns the stage's output, and a function of it that gives
    (Σ weight · loss, number of targets, that pair for the record)."""
    batch = next(batches)
    output = _run(model, batch)

    def loss(losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = (losses_BS * batch.weights).sum()
        count = batch.target_mask.sum()
        # cloned: the schedule may scale the loss in place
        return total, count.to(torch.int32), torch.stack((total.detach().double(), count.double()))

    return output, loss


def evaluation_forward(batches: Iterator[DeviceBatch], model: Any) -> tuple[Tensor, Any]:
    """Schedule callback for forward passes alone: as `training_forward`, but without weights and summed in fp64."""
    batch = next(batches)
    output = _run(model, batch)

    def loss(losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = (losses_BS.double() * batch.target_mask).sum()
        count = batch.target_mask.sum()
        return total, count.to(torch.int32), torch.stack((total, count.double()))

    return output, loss


def _run(model: Any, batch: DeviceBatch) -> Tensor:
    # the model hands document ids down in the place of a mask; see model/attention.py
    return model(batch.tokens, batch.positions, batch.document_ids, labels=batch.labels)
