"""Which positions of a window a context-parallel rank holds, and how the others' are fetched.

A window of S positions is cut into 2·C chunks for C ranks; rank r holds chunks r and 2·C − 1 − r, in this order.
The first of the two is cheap under causal attention by as much as the second is dear, so all ranks do equal work.
megatron-core's rotary embedding expects this very order.

    C = 2:  chunks 0 1 2 3  →  rank 0: 0 3,  rank 1: 1 2
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def zigzag_chunks(sequence_length: int, size: int, rank: int) -> list[tuple[int, int]]:
    """[start, stop) of the chunks of a window that rank `rank` of `size` holds, in its order; one rank holds one chunk, the whole.

    Raises ValueError where the window cannot be cut evenly into 2·size chunks.
    """
    if size == 1:
        return [(0, sequence_length)]
    length, rest = divmod(sequence_length, 2 * size)
    if rest:
        raise ValueError(f"a window of {sequence_length} positions cannot be cut into 2 × {size} chunks for {size} context-parallel ranks")
    return [(chunk * length, (chunk + 1) * length) for chunk in (rank, 2 * size - 1 - rank)]


def zigzag_rows(sequence_length: int, size: int, rank: int) -> Tensor:
    """Positions of a window that rank `rank` of `size` holds, in its order: int64 (sequence_length / size,)."""
    return torch.cat([torch.arange(start, stop) for start, stop in zigzag_chunks(sequence_length, size, rank)])


def take_rows(tensor: Tensor, dim: int, size: int, rank: int) -> Tensor:
    """The rank's part of `tensor` along `dim`, where all S positions lie: contiguous; the tensor itself for one rank."""
    chunks = zigzag_chunks(tensor.size(dim), size, rank)
    if size == 1:
        return tensor
    return torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in chunks], dim)


def gather_rows(tensor: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """All S positions along `dim`, in natural order, from each rank's S/C positions: the inverse of `take_rows`.

    Collective over `group` (None or one rank: the tensor itself). Differentiable: every rank uses the result in
    a loss of its own, so the gradient of a position is the sum of what all ranks have for it (a reduce-scatter).
    """
    if group is None or group.size() == 1:
        return tensor
    return _Gather.apply(tensor.movedim(dim, 0), group).movedim(0, dim)  # pyright: ignore[reportOptionalMemberAccess]


class _Gather(torch.autograd.Function):
    """(S/C, …) of each rank → (S, …)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = group.size()
        gathered = own.new_empty((size * own.size(0), *own.shape[1:]))
        dist.all_gather_into_tensor(gathered, own.contiguous(), group=group)
        by_rank = gathered.view(size, 2, -1, *own.shape[1:])
        return torch.cat((by_rank[:, 0], by_rank[:, 1].flip(0))).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        size, (grad,) = ctx.group.size(), grads
        chunks = grad.unflatten(0, (2 * size, -1))
        by_rank = torch.stack((chunks[:size], chunks[size:].flip(0)), dim=1).flatten(0, 2)
        own = grad.new_empty((by_rank.size(0) // size, *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, by_rank, group=ctx.group)
        return own, None
