"""Causal attention, over whole windows or inside each document of a window, on PyTorch's scaled_dot_product_attention.

Shapes, as megatron-core lays them out: S positions, B windows, N query heads, G key/value heads (G divides N), D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_codemix.kernels.documents import DocumentLayout


def causal_attention(query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, scale: float | None = None) -> Tensor:
    """Every position sees itself and all earlier ones of its window; returns (S, B, N·D) in the inputs' dtype.

    scale: factor on the scores; None: 1/√D (Vaswani et al. 2017, arXiv 1706.03762, equation 1).
    """
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
    mixed = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=key.size(1) != query.size(1))
    return _merge_heads(mixed)


def document_attention(
    query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, layout: DocumentLayout, scale: float | None = None
) -> Tensor:
    """Every position sees itself and the earlier ones of its own document; returns (S, B, N·D) in the inputs' dtype.

    On the CPU each document is computed alone, which costs Σ length² instead of B·S²; elsewhere one call
    takes the mask, since launching a kernel per document would cost more than it saves.
    """
    compute = _each_document if query_SBND.device.type == "cpu" else _with_mask
    return compute(query_SBND, key_SBGD, value_SBGD, layout, scale)


def _each_document(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scale: float | None) -> Tensor:
    positions, windows, heads, size = query.shape
    gqa = key.size(2) != heads
    # split() instead of slices: its backward is one concatenation, not a zero-filled full-size gradient per document
    pieces = (tensor.transpose(0, 1).flatten(0, 1).transpose(0, 1).split(layout.lengths, dim=1) for tensor in (query, key, value))
    mixed = [
        scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=gqa)[0].transpose(0, 1)
        for q, k, v in zip(*pieces, strict=True)
    ]
    return torch.cat(mixed).view(windows, positions, heads * size).transpose(0, 1)


def _with_mask(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scale: float | None) -> Tensor:
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    repeats = query.size(1) // key.size(1)
    if repeats > 1:  # the kernels that take a mask do not take grouped heads
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    return _merge_heads(scaled_dot_product_attention(query, key, value, attn_mask=layout.mask, scale=scale))


def _merge_heads(mixed_BNSD: Tensor) -> Tensor:
    windows, heads, positions, size = mixed_BNSD.shape
    return mixed_BNSD.permute(2, 0, 1, 3).reshape(positions, windows, heads * size)
