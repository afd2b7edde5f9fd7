"""Causal attention, over whole windows or inside each document of a window, on PyTorch's scaled_dot_product_attention.

With a sliding window of W a position sees itself and the W − 1 before it (Beltagy et al. 2020, arXiv 2004.05150, one-sided), and of
those the ones of its own document.

Shapes, as megatron-core lays them out: S positions, B windows, N query heads, G key/value heads (G divides N), D head size.
Under context parallelism the queries are R = S/C of the positions (kernels/context.py says which), the keys all S;
on one rank R = S.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from megatron_codemix.kernels.context import zigzag_chunks
from megatron_codemix.kernels.documents import DocumentLayout

_LEAST_ROWS = 128
"""Queries that are computed together with their keys under a sliding window that is shorter."""


def causal_attention(
    query_RBND: Tensor,
    key_SBGD: Tensor,
    value_SBGD: Tensor,
    scale: float | None = None,
    *,
    dropout: float = 0.0,
    size: int = 1,
    rank: int = 0,
    sliding_window: int | None = None,
) -> Tensor:
    """Every position sees itself and all earlier ones of its window; returns (R, B, N·D) in the inputs' dtype.

    scale: factor on the scores; None: 1/√D (Vaswani et al. 2017, arXiv 1706.03762, equation 1). dropout:
    probability with which an attention weight is zeroed, the others growing by 1 / (1 − dropout); drawn from the
    device's current generator. size, rank: whose queries these are, of the context-parallel ranks.
    sliding_window: how many positions one sees, itself among them; None: all.
    """
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_RBND, key_SBGD, value_SBGD))
    chunks = zigzag_chunks(key.size(2), size, rank)
    queries = query.split([stop - start for start, stop in chunks], dim=2)
    mixed = [
        _last_rows(part, key[:, :, :stop], value[:, :, :stop], scale, dropout, sliding_window)
        for part, (_, stop) in zip(queries, chunks, strict=True)
    ]
    return _merge_heads(mixed[0] if size == 1 else torch.cat(mixed, dim=2))


def document_attention(
    query_RBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, layout: DocumentLayout, scale: float | None = None, *, dropout: float = 0.0
) -> Tensor:
    """Every position sees itself, the earlier ones of its own document, and its prefix; returns (R, B, N·D) in the inputs' dtype.

    layout: of all S positions; it says whose queries these are, what prefixes there are, and whether a window slides.
    scale, dropout: as for `causal_attention`.

    On the CPU each document is computed alone, which costs Σ length² instead of B·S²; elsewhere one call
    takes the mask, since launching a kernel per document would cost more than it saves.
    """
    compute = _each_document if query_RBND.device.type == "cpu" and layout.has_pieces else _with_mask
    return compute(query_RBND, key_SBGD, value_SBGD, layout, scale, dropout)


def _each_document(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scale: float | None, dropout: float = 0.0) -> Tensor:
    rows, windows, heads, size = query.shape
    pieces = layout.pieces
    query, key, value = (tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value))
    if pieces.keys is not None:
        key, value = key.index_select(0, pieces.keys), value.index_select(0, pieces.keys)
    # split() instead of slices: its backward is one concatenation, not a zero-filled full-size gradient per document
    parts = (
        tensor.transpose(0, 1)[None].split(lengths, dim=2)
        for tensor, lengths in ((query, pieces.query_lengths), (key, pieces.key_lengths), (value, pieces.key_lengths))
    )
    slides = layout.sliding_window
    mixed = [
        (_all_rows(q, k, v, scale, dropout) if in_prefix else _last_rows(q, k, v, scale, dropout, slides))[0].transpose(0, 1)
        for q, k, v, in_prefix in zip(*parts, pieces.in_prefix, strict=True)
    ]
    return torch.cat(mixed).view(windows, rows, heads * size).transpose(0, 1)


def _with_mask(query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scale: float | None, dropout: float = 0.0) -> Tensor:
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    return _merge_heads(_masked(query, key, value, layout.mask, scale, dropout))


def _masked(query_BNRD: Tensor, key_BGMD: Tensor, value_BGMD: Tensor, mask: Tensor, scale: float | None, dropout: float) -> Tensor:
    """mask: bool, True where a query may look."""
    repeats = query_BNRD.size(1) // key_BGMD.size(1)
    gqa = repeats > 1 and query_BNRD.device.type == "cpu"
    if repeats > 1 and not gqa:  # a GPU's kernels that take a mask do not take grouped heads
        key_BGMD, value_BGMD = key_BGMD.repeat_interleave(repeats, dim=1), value_BGMD.repeat_interleave(repeats, dim=1)
    return scaled_dot_product_attention(query_BNRD, key_BGMD, value_BGMD, attn_mask=mask, scale=scale, dropout_p=dropout, enable_gqa=gqa)


def _all_rows(query_BNRD: Tensor, key_BGMD: Tensor, value_BGMD: Tensor, scale: float | None, dropout: float) -> Tensor:
    """Attention of R positions to all M keys."""
    gqa = key_BGMD.size(1) != query_BNRD.size(1)
    return scaled_dot_product_attention(query_BNRD, key_BGMD, value_BGMD, dropout_p=dropout, scale=scale, enable_gqa=gqa)


def _last_rows(
    query_BNRD: Tensor, key_BGMD: Tensor, value_BGMD: Tensor, scale: float | None, dropout: float, sliding_window: int | None = None
) -> Tensor:
    """Causal attention of the last R of M positions: query i of R sees all M keys but the last R − 1 − i, or the last W of these."""
    queries, keys = query_BNRD.size(2), key_BGMD.size(2)
    if sliding_window is not None and keys > sliding_window:
        return _sliding_rows(query_BNRD, key_BGMD, value_BGMD, scale, dropout, sliding_window)
    gqa = key_BGMD.size(1) != query_BNRD.size(1)
    mask = None
    if queries < keys and query_BNRD.device.type == "cpu":
        mask = torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
    elif queries < keys:
        mask = causal_lower_right(queries, keys)  # no tensor: it names the variant of the fused kernels
    return scaled_dot_product_attention(
        query_BNRD, key_BGMD, value_BGMD, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=gqa
    )


def _sliding_rows(query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, sliding_window: int) -> Tensor:
    """`_last_rows` under a window that is shorter than the keys: some rows at a time, with the keys that any of them sees."""
    queries, before = query.size(2), key.size(2) - query.size(2)
    step = max(sliding_window, _LEAST_ROWS)
    mixed = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        first, last = max(before + start - sliding_window + 1, 0), before + stop
        diagonal = before + start - first
        mask = torch.ones(stop - start, last - first, dtype=torch.bool, device=query.device)
        mask = mask.tril_(diagonal).triu_(diagonal - sliding_window + 1)
        mixed.append(_masked(query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], mask, scale, dropout))
    return torch.cat(mixed, dim=2)


def _merge_heads(mixed_BNRD: Tensor) -> Tensor:
    windows, heads, rows, size = mixed_BNRD.shape
    return mixed_BNRD.permute(2, 0, 1, 3).reshape(rows, windows, heads * size)
