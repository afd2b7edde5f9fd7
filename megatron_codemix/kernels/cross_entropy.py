"""Cross-entropy over a vocabulary that is split over ranks and padded: padding rows are outside the softmax.

megatron-core's own counts the padding rows in. This one works inside the memory of the logits: no second
tensor of their size exists, in the forward or the backward pass.

With m the rank's own maximum, M = max over ranks of m, s = Σ over ranks of Σⱼ exp(xⱼ − m)·exp(m − M):
    loss = log s + (M − x_label)        d loss / d xⱼ = exp(xⱼ − m)·exp(m − M)/s − [j = label]
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

_CACHED_ELEMENTS = 1 << 17
"""Logits worked on at a time on a CPU: small enough to stay in a core's cache through all passes."""
_LAUNCHED_ELEMENTS = 1 << 27
"""The same on an accelerator, where the bound is the memory of the fp32 scratch (half a GiB) and launches cost time."""


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Loss of each token, in nats: fp32, the shape of `labels`. **Overwrites `logits`**; backward works once.

    logits: (…, V/T) this rank's rows of the padded vocabulary (V rows in all, split evenly over the T ranks of
    `group`), any floating dtype; the last dimension is contiguous. labels: int64 (…), global ids; a label outside
    [0, vocab_size) has no target term and its loss means nothing (mask it). group: tensor-parallel ranks; None: one.
    The gradient of padding rows is exactly zero.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")
    return _CrossEntropy.apply(logits, labels, vocab_size, group)  # pyright: ignore[reportReturnType]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup | None) -> Tensor:
        rows, first = logits.size(-1), logits.size(-1) * _rank(group)
        flat = logits.view(-1, rows)
        column = labels.reshape(-1) - first
        num_real = min(max(vocab_size - first, 0), rows)
        here = (column >= 0) & (column < num_real)
        column = column.clamp(0, rows - 1)
        maximum, total, target = _exponentiate(flat, column, num_real)
        target = target.masked_fill_(~here, 0.0)

        highest = _reduce(maximum.clone(), dist.ReduceOp.MAX, group)
        rescale = (maximum - highest).exp_()
        total, target = _reduce(torch.stack((total.mul_(rescale), target)), dist.ReduceOp.SUM, group)
        loss = total.log().add_(highest - target)  # the difference first: it is exact where the loss is small
        ctx.save_for_backward(logits, column, here, rescale.div_(total), loss)
        ctx.spent = False
        return loss.view(labels.shape).to(torch.promote_types(loss.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        assert not ctx.spent, "the gradient was written over the saved exponentials: backward works once"
        ctx.spent = True
        logits, column, here, factor, loss = ctx.saved_tensors
        grad = grads[0].reshape(-1)
        flat = logits.view(-1, logits.size(-1))
        flat.mul_((factor * grad)[:, None])
        # the label's own entry, p − 1, is formed in fp32: in bf16 it would vanish once p rounds to 1
        wanted = torch.expm1(-loss).mul_(grad)[:, None].to(flat.dtype)
        entry = column[:, None]
        flat.scatter_(1, entry, torch.where(here[:, None], wanted, flat.gather(1, entry)))
        return logits, None, None, None


def _exponentiate(flat: Tensor, column: Tensor, num_real: int) -> tuple[Tensor, Tensor, Tensor]:
    """Replace x by exp(x − m) and padding by 0, in place; returns m, Σ exp(x − m) and x[column], each (tokens,), fp32."""
    dtype = torch.promote_types(flat.dtype, torch.float32)
    maximum, total, target = (torch.zeros(flat.size(0), dtype=dtype, device=flat.device) for _ in range(3))
    flat[:, num_real:] = 0.0
    if num_real == 0:  # a rank that holds padding rows alone
        return maximum.fill_(-torch.inf), total, target
    elements = _CACHED_ELEMENTS if flat.device.type == "cpu" else _LAUNCHED_ELEMENTS
    step = max(1, elements // flat.size(1))
    for start in range(0, flat.size(0), step):
        part = slice(start, start + step)
        real = flat[part, :num_real]
        values = real.to(dtype)  # the same tensor when it is fp32 already
        target[part] = flat[part].gather(1, column[part, None])[:, 0]
        maximum[part] = values.amax(dim=1)
        values.sub_(maximum[part, None]).exp_()
        total[part] = values.sum(dim=1)
        real.copy_(values)
    return maximum, total, target


def _rank(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else group.rank()


def _reduce(tensor: Tensor, operation: Any, group: dist.ProcessGroup | None) -> Tensor:
    """All-reduce in place; the identity on one rank."""
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, op=operation, group=group)
    return tensor
