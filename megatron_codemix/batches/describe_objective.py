"""What an objective made of some batches, in words: how often, and an example of each part from each source."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from megatron_codemix.batches.batch import Batch
from megatron_codemix.config import Objective
from megatron_codemix.config.objective import FIM_SYMBOLS
from megatron_codemix.tokenizer import Tokenizer

_EXCERPT = 60
"""Characters that are shown of each end."""
_AROUND = 12
"""Tokens that are shown before and behind a replaced one."""


def describe_objective(batches: Sequence[Batch], sources: Sequence[str], tokenizer: Tokenizer, objective: Objective) -> list[str]:
    """Lines: for each source what was rearranged, seen in both directions, replaced and left out, counted from the batches; examples."""
    names = {number: name for name, number in tokenizer.special_ids.items()}
    lines = [f"objective: {objective.words()}"]
    for number, source in enumerate(sources):
        mine = _Rows(batches, number)
        if len(mine.tokens) == 0:
            continue
        lines.append(f"{source}: {_counts(mine, tokenizer, objective)}")
        if objective.fim:
            lines += [f"  {words}" for words in _fim_example(mine, tokenizer, names)]
        if objective.prefix:
            lines += [f"  {words}" for words in _prefix_example(mine, tokenizer, names)]
        if objective.corruption:
            lines += [f"  {words}" for words in _corruption_example(mine, tokenizer, names)]
    return lines


class _Rows:
    """The windows of one source as arrays."""

    def __init__(self, batches: Sequence[Batch], source: int) -> None:
        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(batch, name).numpy()[batch.source_ids.numpy() == source] for batch in batches])

        self.tokens, self.labels, self.documents, self.prefix = map(column, ("tokens", "labels", "document_ids", "prefix"))
        self.excluded, self.padding, self.windows = map(column, ("num_excluded", "num_padding", "window_ids"))
        self.replaced = self.tokens[:, 1:] != self.labels[:, :-1]
        self.begins = np.ones(self.tokens.shape, bool)
        self.begins[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.2%})"


def _counts(rows: _Rows, tokenizer: Tokenizer, objective: Objective) -> str:
    documents, tokens = int(rows.begins.sum()), rows.tokens.size
    parts = [f"{documents:,} documents or parts of documents in {len(rows.tokens):,} windows"]
    if objective.fim:
        prefix, _, suffix, _ = (tokenizer.special_ids[name] for name in FIM_SYMBOLS)
        begun = rows.labels == prefix
        begun[:, 0] |= rows.tokens[:, 0] == prefix
        spm = int(((rows.tokens == prefix) & (rows.labels == suffix)).sum())
        parts.append(f"{_share(int(begun.sum()), documents)} rearranged, {spm:,} of them suffix first")
    if objective.prefix:
        with_one = int((rows.prefix.astype(bool) & rows.begins).sum())
        parts.append(f"{_share(with_one, documents)} with a prefix, {rows.prefix.sum() / max(with_one, 1):.1f} tokens long on average")
    if objective.corruption:
        parts.append(f"{_share(int(rows.replaced.sum()), rows.replaced.size)} inputs replaced")
    padded, left_out = int(rows.padding.sum()), int(rows.excluded.sum())
    return "; ".join([*parts, f"{_share(left_out, tokens)} labels are no targets, {_share(padded, tokens)} are padding"])


def _shown(tokenizer: Tokenizer, ids: np.ndarray, names: dict[int, str]) -> str:
    """Both ends of a text, in quotes; control symbols by their names."""
    runs = groupby(ids.tolist(), lambda number: number in names)
    text = "".join("".join(map(names.__getitem__, run)) if is_control else tokenizer.decode(list(run)) for is_control, run in runs)
    return repr(text if len(text) <= 2 * _EXCERPT else f"{text[:_EXCERPT]} … {text[-_EXCERPT:]}")


def _fim_example(rows: _Rows, tokenizer: Tokenizer, names: dict[int, str]) -> list[str]:
    """The first rearranged document that is whole."""
    prefix, middle, suffix, pad = (tokenizer.special_ids[name] for name in FIM_SYMBOLS)
    for row in range(len(rows.tokens)):
        ids = rows.tokens[row]
        for start in np.flatnonzero(ids == prefix).tolist():
            stops = np.flatnonzero(
                (ids[start + 1 :] == tokenizer.end_of_text_id) | (ids[start + 1 :] == pad) | (ids[start + 1 :] == prefix)
            )
            fragment = ids[start : start + 1 + int(stops[0])] if len(stops) else ids[start:]
            cuts = [np.flatnonzero(fragment == mark) for mark in (suffix, middle)]
            if not all(map(len, cuts)):
                continue
            behind, before_middle = (int(cut[0]) for cut in cuts)
            where = f"window {int(rows.windows[row]):,}, token {start:,}"
            parts = [
                ("prefix", fragment[1:behind]),
                ("suffix", fragment[behind + 1 : before_middle]),
                ("middle", fragment[before_middle + 1 :]),
            ]
            if behind == 1:
                parts = [parts[1], ("prefix and middle", parts[2][1])]
            return [f"{where}: " + ", ".join(f"{name} {_shown(tokenizer, part, names)}" for name, part in parts)]
    return []


def _prefix_example(rows: _Rows, tokenizer: Tokenizer, names: dict[int, str]) -> list[str]:
    """The longest prefix, and what comes behind it in its document."""
    if not rows.prefix.any():
        return []
    flags = rows.prefix.astype(bool)
    row, start, length = 0, 0, 0
    for number, place in zip(*np.nonzero(flags & rows.begins), strict=True):
        same = flags[number] & (rows.documents[number] == rows.documents[number, place])
        if same.sum() > length:
            row, start, length = int(number), int(place), int(same.sum())
    document = rows.documents[row] == rows.documents[row, start]
    rest = rows.tokens[row][document][length:]
    where = f"window {int(rows.windows[row]):,}, tokens {start:,} to {start + length - 1:,}"
    seen = _shown(tokenizer, rows.tokens[row, start : start + length], names)
    return [f"{where} are seen by all of their document: {seen}; behind them: {_shown(tokenizer, rest, names)}"]


def _corruption_example(rows: _Rows, tokenizer: Tokenizer, names: dict[int, str]) -> list[str]:
    """The first replaced token among its neighbours."""
    found = np.argwhere(rows.replaced)
    if not len(found):
        return []
    row, place = found[0].tolist()
    around = slice(max(0, place + 1 - _AROUND), place + 2 + _AROUND)
    before = np.concatenate((rows.tokens[row, :1], rows.labels[row]))[around]
    where = f"window {int(rows.windows[row]):,}, around token {place + 1:,}"
    return [f"{where}: {_shown(tokenizer, before, names)} is read as {_shown(tokenizer, rows.tokens[row][around], names)}"]
