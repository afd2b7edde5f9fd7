"""Log-probabilities of whole windows under any layout: gathered over vocabulary, positions and pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_codemix.engine.forward import DeviceBatch
from megatron_codemix.engine.passes import Passes
from megatron_codemix.kernels.context import gather_rows
from megatron_codemix.parallel import Topology


@dataclass
class _Windows:
    """The fields of a `TokenBatch`, for windows without targets."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor


@torch.no_grad()
def log_probabilities(replicas: Passes, tokens: Tensor, document_ids: Tensor | None, prefix: Tensor | None, vocab_size: int) -> Tensor:
    """float32 (B, S, vocab_size), the same on every rank that passes these tokens: see `Engine.log_probabilities`. Collective.

    A length that context or sequence parallelism cannot cut is padded behind the window, where causal attention does not look.
    """
    topology = replicas.topology
    length = tokens.size(1)
    windows = windows_without_targets(tokens, document_ids, -length % least_length(topology), prefix)
    replicas.eval()
    records = replicas.run(_logits, [windows], mode="collect")
    if records:
        model = replicas.chunks[-1]
        values = gather_rows(model.log_probabilities(records[0]), 1, topology.context.group)[:, :length].contiguous()
    else:
        values = torch.empty((tokens.size(0), length, vocab_size), dtype=torch.float32, device=topology.device)
    return _from_the_last_stage(values, topology)


def least_length(topology: Topology) -> int:
    """Windows of multiples of this length can be cut by any layout of these degrees."""
    return topology.tensor.size * (2 * topology.context.size if topology.context.size > 1 else 1)


def windows_without_targets(tokens: Tensor, document_ids: Tensor | None = None, padding: int = 0, prefix: Tensor | None = None) -> _Windows:
    """tokens int64 (B, S), `padding` positions longer; document_ids: None where each window is one document; prefix: None: no prefixes."""
    fields = (tokens, *(torch.zeros_like(tokens) if given is None else given for given in (document_ids, prefix)))
    tokens, ids, flags = (torch.nn.functional.pad(tensor, (0, padding)) for tensor in fields)
    nothing = torch.zeros_like(tokens)
    positions = torch.arange(tokens.size(1)).expand(tokens.shape)
    return _Windows(tokens, nothing, nothing, nothing.float(), positions, ids, flags)


def _logits(batches: Iterator[DeviceBatch], model: Any) -> tuple[Tensor, Any]:
    batch = next(batches)
    output = model(batch.tokens, batch.positions, batch.document_ids)
    return output, lambda logits_BSV, non_loss_data: logits_BSV


def _from_the_last_stage(values: Tensor, topology: Topology) -> Tensor:
    if topology.pipeline.size > 1:
        last = dist.get_global_rank(topology.pipeline.group, topology.pipeline.size - 1)
        dist.broadcast(values, src=last, group=topology.pipeline.group)
    return values
