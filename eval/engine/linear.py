"""Matrix products of fp32 on AMD's processors by oneDNN.

PyTorch takes MKL for them, which keeps to AVX2 on processors that are not Intel's; oneDNN, which PyTorch has too, takes AVX-512 where
it is there: on one thread of an EPYC twice as many operations a second. Both compute in fp32; sums run in another order.
"""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_LEAST_ROWS, _LEAST = 64, 1 << 20
"""Rows of x, and multiplications of a product, below which oneDNN's own start-up and the copies of weights cost more than is saved."""

_TERMS = 256
"""Terms that are summed in one go at most: as exact as MKL (rms against fp64), where thousands would lose a bit more."""

_CPU = Path("/proc/cpuinfo")


@cache
def has_onednn() -> bool:
    """Whether products run by oneDNN here: an AMD processor, and a PyTorch whose operator gives what its own gives (tried once)."""
    with contextlib.suppress(OSError, AttributeError, RuntimeError, TypeError, NotImplementedError), torch.inference_mode():
        if "AuthenticAMD" not in _CPU.read_text(errors="replace") or not torch.backends.mkldnn.is_available():
            return False
        x, weight, bias = (torch.arange(float(size)).remainder(7).sub(3) for size in (5 * 40, 24 * 40, 24))
        x, weight = x.view(1, 5, 40), weight.view(24, 40)
        # sums of small whole numbers, so that the order of terms is nothing
        return torch.equal(_in_parts(x, weight, bias), nn.functional.linear(x, weight, bias))
    return False


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # what torch.compile makes of a linear layer


def _in_parts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`_onednn` over `_TERMS` inputs at a time, each contiguous: of slices it would fall back to plain loops."""
    parts = max(1, -(-weight.shape[1] // _TERMS))
    found = None
    for some, columns in zip(x.chunk(parts, -1), weight.chunk(parts, 1), strict=True):
        product = _onednn(some.contiguous(), columns.contiguous(), bias if found is None else None)
        found = product if found is None else found.add_(product)
    assert found is not None
    return found


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (…, I), weight (O, I), bias (O,) → (…, O), as torch.nn.functional.linear.

    Which library computes follows from shapes and dtypes alone: equal batches give equal bits.
    """
    fits = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    enough = x.numel() >= _LEAST_ROWS * weight.shape[1] and x.numel() * len(weight) >= _LEAST
    # oneDNN's operator has no derivative
    if fits and enough and not torch.is_grad_enabled() and has_onednn():
        return _in_parts(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


class FastLinear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class FastConv1D(Conv1D):
    """GPT-2's layer, whose weight stands the other way, by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.t(), self.bias)


_FAST = {nn.Linear: FastLinear, Conv1D: FastConv1D}


def use_fast_linear(model: nn.Module) -> None:
    """Let the model's linear layers run by `linear`. Weights, names and training stay as they are."""
    for module in model.modules():
        module.__class__ = _FAST.get(type(module), type(module))
