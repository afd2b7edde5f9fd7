"""Batches in words, for a reader who wants to see what would be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from megatron_codemix.batches.batch import Batch
from megatron_codemix.mixture.table import align

_EXCERPT = 160


class Decoder(Protocol):
    """The part of `Tokenizer` that is needed here."""

    def decode(self, ids: Any) -> str:
        """Token ids → text."""
        ...


def describe_batches(batches: Sequence[Batch], sources: Sequence[str], tokenizer: Decoder, declared: Mapping[str, Any]) -> list[str]:
    """Lines: each source's share in windows, window tokens, targets and bytes against the declared one, and excerpts.

    declared: source → share as the config or plan writes it (a ramp is shown as it is). Counted from the batches.
    """
    counts = np.zeros((len(sources), 6), np.int64)
    for batch in batches:
        columns = [np.ones(len(batch.source_ids), np.int64), np.full(len(batch.source_ids), batch.tokens.shape[1])]
        columns += [batch.target_mask.sum(1).numpy(), batch.num_padding.numpy(), batch.num_excluded.numpy(), batch.target_bytes.numpy()]
        np.add.at(counts, batch.source_ids.numpy(), np.stack(columns, axis=1))
    total = np.maximum(counts.sum(axis=0), 1)
    head = ("source", "windows", "tokens", "share", "declared", "targets", "share of targets", "padding", "excluded", "bytes")
    rows: list[tuple[str, ...]] = [(*head, "share of bytes")]
    for name, (windows, tokens, targets, padding, excluded, size) in zip(sources, counts.tolist(), strict=True):
        shares = [f"{value / whole:.4f}" for value, whole in ((tokens, total[1]), (targets, total[2]), (size, total[5]))]
        rows.append(
            (name, f"{windows:,}", f"{tokens:,}", shares[0], _words(declared.get(name, 0)), f"{targets:,}", shares[1])
            + (f"{padding:,}", f"{excluded:,}", f"{size:,}", shares[2])
        )
    documents = sum(int(batch.document_ids[:, -1].sum()) + len(batch.document_ids) for batch in batches)
    lines = [*align(rows, left=(0,)), f"{counts[:, 0].sum():,} windows hold {documents:,} documents or parts of documents", ""]
    for number, name in enumerate(sources):
        lines += _excerpts(batches, number, name, tokenizer)
    return lines


def _words(share: Any) -> str:
    if isinstance(share, dict):
        return f"{share['start']} → {share['end']}"
    start, end = getattr(share, "start", None), getattr(share, "end", None)
    return str(share) if start is None else f"{start} → {end}"


def _excerpts(batches: Sequence[Batch], number: int, name: str, tokenizer: Decoder) -> list[str]:
    """The first window of a source: its beginning, and the beginning of the document that opens in it, if one does."""
    for batch in batches:
        for row in np.flatnonzero(batch.source_ids.numpy() == number)[:1].tolist():
            tokens, ids = batch.tokens[row].numpy(), batch.document_ids[row].numpy()
            where = f"{name}, window {int(batch.window_ids[row]):,}, epoch {int(batch.epochs[row])}"
            lines = [f"{where}: {_shown(tokenizer, tokens)}"]
            opening = np.flatnonzero(ids == 1)
            if len(opening):
                lines.append(
                    f"{where}, document that opens at token {int(opening[0]) + 1:,}: {_shown(tokenizer, tokens[opening[0] + 1 :])}"
                )
            return lines
    return []


def _shown(tokenizer: Decoder, ids: np.ndarray) -> str:
    text = tokenizer.decode(ids[:_EXCERPT])
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")
