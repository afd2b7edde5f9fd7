"""What megatron-core's schedule calls for each micro-batch: the model's forward pass and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.engine.interface import TokenBatch


@dataclass(frozen=True)
class DeviceBatch:
    """What a forward pass needs of a micro-batch, on the device."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    weights: Tensor
    """float32 (B, S): loss weights, 0 where there is no target."""
    positions: Tensor
    document_ids: Tensor | None
    """int64 (B, S), or None where every window is one document (or documents are not masked)."""

    @classmethod
    def of(cls, batch: TokenBatch, device: torch.device, document_masking: bool) -> DeviceBatch:
        """Copy the fields to `device`; the question whether there is anything to mask is answered before, on the host."""
        ids = batch.document_ids
        packed = document_masking and bool((ids != ids[:, :1]).any())
        return cls(
            tokens=batch.tokens.to(device),
            labels=batch.labels.to(device),
            target_mask=batch.target_mask.to(device),
            weights=(batch.loss_weights * batch.target_mask).to(device),
            positions=batch.positions.to(device),
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
