"""Prefixes of documents in attention: every path, on every context-parallel rank, against scores that are masked one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_codemix.engine.forward import DeviceBatch
from megatron_codemix.kernels import DocumentLayout, DocumentLayouts, attention, document_attention, take_rows, zigzag_rows

HEADS, SIZE = 4, 6
SLIDING = st.one_of(st.none(), st.integers(1, 45))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def windows_with_prefixes(draw, anywhere: bool = False) -> Tensor:
    """Ids and prefix flags, int64 (2, B, S): prefixes where documents begin, of any length, or flags anywhere."""
    windows, positions = draw(st.integers(1, 3)), 8 * draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    chance = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    ids = (torch.rand(windows, positions, generator=generator) < chance).long().cumsum(1)
    if anywhere:
        return torch.stack((ids, (torch.rand(windows, positions, generator=generator) < 0.3).long()))
    opens = torch.ones_like(ids, dtype=torch.bool)
    opens[:, 1:] = ids[:, 1:] != ids[:, :-1]
    place = torch.arange(positions).expand(windows, -1)
    begins = place.where(opens, 0).cummax(1).values
    lengths = torch.randint(0, draw(st.sampled_from([2, 9, 50])), ids.shape, generator=generator).gather(1, begins)
    return torch.stack((ids, (place - begins < lengths).long()))


def seen(ids_and_prefix: Tensor, slides: int | None) -> Tensor:
    """bool (B, S, S): j visible to i, written out."""
    (windows, positions), (ids, prefix) = ids_and_prefix.shape[1:], ids_and_prefix.tolist()
    return torch.tensor(
        [
            [
                [
                    ids[b][i] == ids[b][j] and (j <= i or prefix[b][j] == 1) and (slides is None or abs(i - j) < slides)
                    for j in range(positions)
                ]
                for i in range(positions)
            ]
            for b in range(windows)
        ]
    )


def dense(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Softmax of masked scores, (S, B, N·D)."""
    repeats = query.size(2) // key.size(2)
    key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("ibnd,jbnd->bnij", query, key) / query.size(3) ** 0.5
    weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bnij,jbnd->ibnd", weights, value).flatten(2)


def check(compute: Any, layouts: Tensor, size: int, groups: int, slides: int | None) -> None:
    """Values and gradients of all ranks together are those of the dense computation."""
    windows, positions = layouts.shape[1:]
    inputs = [random(positions, windows, heads, SIZE, seed=seed).requires_grad_() for seed, heads in ((1, HEADS), (2, groups), (3, groups))]
    query, key, value = inputs
    wanted = dense(query, key, value, seen(layouts, slides))
    upstream = random(*wanted.shape, seed=4)
    wanted_grads = torch.autograd.grad(wanted, inputs, upstream)
    sums = [torch.zeros_like(tensor) for tensor in inputs]
    for rank in range(size):
        rows = zigzag_rows(positions, size, rank)
        layout = DocumentLayout(layouts, size, rank, slides)
        ours = compute(take_rows(query, 0, size, rank), key, value, layout, None)
        assert (ours - wanted[rows]).abs().max() <= 1e-12
        for total, grad in zip(sums, torch.autograd.grad(ours, inputs, upstream[rows]), strict=True):
            total += grad
    for total, grad in zip(sums, wanted_grads, strict=True):
        assert (total - grad).abs().max() <= 1e-11


@given(layouts=windows_with_prefixes(), size=st.sampled_from([1, 2, 4]), groups=st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_by_pieces(layouts, size, groups):
    assert DocumentLayout(layouts, size).has_pieces
    check(attention._each_document, layouts, size, groups, None)


@given(layouts=windows_with_prefixes() | windows_with_prefixes(anywhere=True), size=st.sampled_from([1, 2, 4]), slides=SLIDING)
@settings(max_examples=60, deadline=None)
def test_by_masks(layouts, size, slides):
    check(attention._with_mask, layouts, size, 2, slides)


@given(layouts=windows_with_prefixes() | windows_with_prefixes(anywhere=True), size=st.sampled_from([1, 2]), slides=SLIDING)
@settings(max_examples=60, deadline=None)
def test_whichever_is_taken(layouts, size, slides):
    check(document_attention, layouts, size, 2, slides)


@given(layouts=windows_with_prefixes(), size=st.sampled_from([1, 2, 4]))
@settings(max_examples=60, deadline=None)
def test_pieces_take_the_keys_that_are_seen(layouts, size):
    windows, positions = layouts.shape[1:]
    allowed = seen(layouts, None)
    for rank in range(size):
        layout, rows = DocumentLayout(layouts, size, rank), zigzag_rows(positions, size, rank)
        assert torch.equal(layout.mask[:, 0], allowed[:, rows])
        pieces, at = layout.pieces, 0
        keys = torch.arange(windows * positions) if pieces.keys is None else pieces.keys
        places = torch.arange(windows * positions).view(windows, positions)[:, rows].flatten()
        for number, own in zip(pieces.query_lengths, keys.split(pieces.key_lengths), strict=True):
            last = places[at + number - 1]
            window, row = divmod(int(last), positions)
            assert own.tolist() == (window * positions + allowed[window, row].nonzero().flatten()).tolist()
            at += number
        assert at == places.numel()


def test_without_flags_it_is_causal_and_nothing_is_built_for_prefixes():
    ids = (torch.arange(16) // 5).expand(2, -1).contiguous()
    with_none, plain = DocumentLayout(torch.stack((ids, torch.zeros_like(ids)))), DocumentLayout(ids)
    assert torch.equal(with_none.mask, plain.mask)
    assert with_none.pieces.query_lengths == plain.pieces.query_lengths
    assert with_none.pieces.key_lengths == plain.pieces.key_lengths
    assert plain.pieces.keys is None
    assert plain.prefix is None
    kept = DocumentLayouts()
    assert kept.of(torch.stack((ids, ids))).prefix is not None
    with pytest.raises(ValueError, match="shape"):
        DocumentLayout(torch.stack((ids, ids, ids)))


@pytest.mark.parametrize("size", [1, 2])
def test_only_micro_batches_with_prefixes_carry_their_flags(size):
    ids = torch.zeros(2, 16, dtype=torch.long)
    prefix = torch.zeros(2, 16, dtype=torch.uint8)
    names = ("tokens", "labels", "positions", "target_mask", "loss_weights")
    batch: Any = SimpleNamespace(**{name: torch.ones(2, 16) for name in names}, document_ids=ids, prefix=prefix)
    axis: Any = SimpleNamespace(size=size, rank=0)
    assert DeviceBatch.of(batch, torch.device("cpu"), True, axis).document_ids is None
    prefix[1, :3] = 1
    found = DeviceBatch.of(batch, torch.device("cpu"), True, axis).document_ids
    assert found is not None
    assert torch.equal(found, torch.stack((ids, prefix.long())))
    assert DeviceBatch.of(batch, torch.device("cpu"), False, axis).document_ids is None
