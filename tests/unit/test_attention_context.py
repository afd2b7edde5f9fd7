"""Context parallelism of attention, all ranks played by one process: each rank's rows are those of the whole computation."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_codemix.engine.forward import DeviceBatch
from megatron_codemix.kernels import (
    DocumentLayout,
    DocumentLayouts,
    attention,
    causal_attention,
    document_attention,
    gather_rows,
    take_rows,
    zigzag_chunks,
    zigzag_rows,
)

HEADS, SIZE = 4, 6
SLIDING = st.one_of(st.none(), st.integers(1, 45))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def packed_windows(draw) -> Tensor:
    """Document ids int64 (B, S) with S a multiple of 8, so that up to 4 ranks can share them; boundaries anywhere."""
    windows, positions = draw(st.integers(1, 3)), 8 * draw(st.integers(1, 5))
    chance = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return (torch.rand(windows, positions, generator=generator) < chance).long().cumsum(1)


def leaves(ids: Tensor, groups: int, dtype: torch.dtype) -> list[Tensor]:
    windows, positions = ids.shape
    return [
        random(positions, windows, heads, SIZE, seed=seed, dtype=dtype).requires_grad_()
        for seed, heads in ((1, HEADS), (2, groups), (3, groups))
    ]


def check_ranks(compute_rank, whole, inputs: list[Tensor], size: int, tolerance: float) -> None:
    """compute_rank(q of the rank, k, v, rank), put together, has the values and the gradients of whole(q, k, v)."""
    query, key, value = inputs
    wanted = whole(query, key, value)
    upstream = random(*wanted.shape, seed=4, dtype=wanted.dtype)
    wanted_grads = torch.autograd.grad(wanted, inputs, upstream)
    sums = [torch.zeros_like(tensor) for tensor in inputs]
    for rank in range(size):
        rows = zigzag_rows(query.size(0), size, rank)
        ours = compute_rank(take_rows(query, 0, size, rank), key, value, rank)
        assert (ours - wanted[rows]).abs().max() <= tolerance
        for total, grad in zip(sums, torch.autograd.grad(ours, inputs, upstream[rows]), strict=True):
            total += grad
    for total, grad in zip(sums, wanted_grads, strict=True):
        assert (total - grad).abs().max() <= tolerance * max(1.0, grad.abs().max().item())


@pytest.mark.parametrize("compute", [attention._each_document, attention._with_mask])
@given(ids=packed_windows(), size=st.sampled_from([1, 2, 4]), groups=st.sampled_from([1, 2, 4]), slides=SLIDING)
@settings(max_examples=40, deadline=None)
def test_rows_of_document_attention(compute, ids, size, groups, slides):
    def rank_part(query: Tensor, key: Tensor, value: Tensor, rank: int) -> Tensor:
        return compute(query, key, value, DocumentLayout(ids, size, rank, slides), None)

    def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return document_attention(query, key, value, DocumentLayout(ids, sliding_window=slides))

    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        check_ranks(rank_part, whole, leaves(ids, groups, dtype), size, tolerance)


@given(ids=packed_windows(), size=st.sampled_from([2, 4]), groups=st.sampled_from([1, 2, 4]), slides=SLIDING)
@settings(max_examples=20, deadline=None)
def test_rows_of_causal_attention(ids, size, groups, slides):
    def rank_part(query: Tensor, key: Tensor, value: Tensor, rank: int) -> Tensor:
        return causal_attention(query, key, value, size=size, rank=rank, sliding_window=slides)

    whole = partial(causal_attention, sliding_window=slides)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        check_ranks(rank_part, whole, leaves(ids, groups, dtype), size, tolerance)


@given(ids=packed_windows(), size=st.sampled_from([1, 2, 4]), slides=SLIDING)
@settings(max_examples=40, deadline=None)
def test_pieces_and_mask_say_the_same(ids, size, slides):
    windows, positions = ids.shape
    for rank in range(size):
        layout = DocumentLayout(ids, size, rank, slides)
        pieces, rows = layout.pieces, zigzag_rows(positions, size, rank)
        behind = rows[:, None] - torch.arange(positions)
        allowed = (ids[:, rows, None] == ids[:, None, :]) & (behind >= 0) & (behind < (slides or positions))
        assert torch.equal(layout.mask[:, 0], allowed)
        keys = torch.arange(ids.numel()) if pieces.keys is None else pieces.keys
        places = torch.arange(ids.numel()).view(windows, positions)[:, rows].flatten()
        seen = torch.zeros(places.numel(), ids.numel(), dtype=torch.bool)
        for queries, own in zip(torch.arange(places.numel()).split(pieces.query_lengths), keys.split(pieces.key_lengths), strict=True):
            before = len(own) - len(queries)
            triangle = torch.ones(len(queries), len(own), dtype=torch.bool).tril(before).triu(before - (slides or positions) + 1)
            seen[queries[:, None], own] = triangle
        for window in range(windows):
            block = seen.view(windows, -1, windows, positions)[window]
            assert torch.equal(block[:, window], allowed[window])
            assert block.sum() == allowed[window].sum(), "no query sees another window"


def test_pieces_under_a_sliding_window_take_no_more_keys_than_their_queries_see():
    ids = torch.zeros(1, 64, dtype=torch.long)
    found = [DocumentLayout(ids, 4, rank, 5).pieces for rank in range(4)]
    assert [pieces.query_lengths for pieces in found] == [(8, 8), (8, 8), (8, 8), (16,)], "the last rank's two chunks are neighbours"
    assert [pieces.key_lengths for pieces in found] == [(8, 12), (12, 12), (12, 12), (20,)]


def test_pieces_of_short_documents_are_short():
    """The cost on a CPU follows the documents, not B·S²."""
    ids = (torch.arange(64) // 4).expand(2, -1).contiguous()
    for rank in range(4):
        pieces = DocumentLayout(ids, 4, rank).pieces
        assert pieces.query_lengths == pieces.key_lengths == (4,) * 8


@given(size=st.integers(1, 6), chunk=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_position_is_on_one_rank(size, chunk):
    length = 2 * size * chunk
    rows = [zigzag_rows(length, size, rank) for rank in range(size)]
    assert sorted(torch.cat(rows).tolist()) == list(range(length))
    # causal work is the number of keys that the rows see
    assert len({int((part + 1).sum()) for part in rows}) == 1
    values = random(2, length, 3)
    for rank in range(size):
        assert torch.equal(take_rows(values, 1, size, rank), values[:, rows[rank]])


def test_zigzag_is_what_megatron_core_rotates():
    assert zigzag_chunks(16, 2, 0) == [(0, 4), (12, 16)]
    assert zigzag_chunks(16, 2, 1) == [(4, 8), (8, 12)]
    assert zigzag_chunks(7, 1, 0) == [(0, 7)]


@pytest.mark.parametrize(("length", "size"), [(10, 2), (12, 4), (7, 2)])
def test_windows_that_cannot_be_cut_are_refused(length, size):
    with pytest.raises(ValueError, match=rf"window of {length} positions cannot be cut into 2 × {size} chunks"):
        zigzag_rows(length, size, 0)


def test_one_rank_gathers_nothing():
    values = random(4, 3)
    assert gather_rows(values, 0, None) is values
    assert take_rows(values, 0, 1, 0) is values


def test_layouts_of_two_ranks_are_kept_apart():
    layouts, ids = DocumentLayouts(), torch.zeros(1, 8, dtype=torch.long)
    own = layouts.of(ids, 2, 1)
    assert layouts.of(ids.detach(), 2, 1) is own
    assert layouts.of(ids, 2, 0) is not own
    assert layouts.of(ids) is not own


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_dropout_zeroes_weights_and_keeps_the_mean(packed, size):
    """With unit values the result of a row is Σ of its kept weights / (1 − p): 1 on average, and not 1 each."""
    ids = (torch.arange(64) // 16).expand(8, -1).contiguous()
    query, key, value = random(64, 8, HEADS, SIZE), random(64, 8, HEADS, SIZE, seed=1), torch.ones(64, 8, HEADS, SIZE, dtype=torch.float64)

    def compute(dropout: float) -> Tensor:
        own = take_rows(query, 0, size, size - 1)
        if packed:
            return document_attention(own, key, value, DocumentLayout(ids, size, size - 1), dropout=dropout)
        return causal_attention(own, key, value, dropout=dropout, size=size, rank=size - 1)

    torch.manual_seed(3)
    first, second = compute(0.25), compute(0.25)
    torch.manual_seed(3)
    assert torch.equal(compute(0.25), first), "the numbers are those of the current generator"
    assert not torch.equal(first, second)
    assert torch.allclose(compute(0.0), torch.ones_like(first))
    assert first.mean().item() == pytest.approx(1.0, abs=0.03)
    assert first.std() > 0.05


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_batch_add_up(size):
    """Each position is on one rank, with its own target; document ids are on all."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(3 * 16).view(3, 16)
    mask, weights = (torch.rand(3, 16, generator=generator) < 0.7).long(), torch.rand(3, 16, generator=generator)
    ids = (torch.arange(16) // 5).expand(3, -1)
    fields = {"tokens": tokens, "labels": tokens + 1, "target_mask": mask, "loss_weights": weights, "document_ids": ids}
    batch: Any = SimpleNamespace(**fields, positions=torch.arange(16).expand(3, -1), prefix=None)
    axes: list[Any] = [SimpleNamespace(size=size, rank=rank) for rank in range(size)]
    parts = [DeviceBatch.of(batch, torch.device("cpu"), True, axis) for axis in axes]
    assert sorted(torch.cat([part.tokens.flatten() for part in parts]).tolist()) == tokens.flatten().tolist()
    assert sum(int(part.target_mask.sum()) for part in parts) == mask.sum()
    for part in parts:
        assert torch.equal(part.labels, part.tokens + 1)
        assert torch.equal(part.positions, part.tokens % 16)
        assert torch.equal(part.weights, (weights * mask).flatten()[part.tokens])
        assert torch.equal(part.document_ids, ids)
    unmasked = DeviceBatch.of(batch, torch.device("cpu"), False, axes[0])
    assert unmasked.document_ids is None
