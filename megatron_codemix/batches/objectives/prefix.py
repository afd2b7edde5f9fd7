"""Prefix-LM: the beginning of a document is seen by all of it (Raffel et al. 2020, arXiv 1910.10683, section 3.2.1).

A document's inputs in a window are positions a … b − 1, of which a is the end-of-text that opens it (or the window's first token).
Its prefix is a … c − 1, with c drawn uniformly from a + 1 … b, or just behind the first `until` symbol. An input of the prefix is
seen by every position of the document, also by earlier ones, so a label inside it would be predicted from itself: it is no target.
"""

from __future__ import annotations

import numpy as np

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.draws import uniform
from megatron_codemix.batches.objectives.part import Context
from megatron_codemix.config import PrefixConfig


class VisiblePrefix:
    """Marks prefixes, and takes their labels out of the targets."""

    def __init__(self, settings: PrefixConfig, context: Context) -> None:
        self._context = context
        self._rates = context.rates(settings.rate)
        self._until = None if settings.until is None else context.tokenizer.special_ids[settings.until]

    def apply(self, block: Block) -> None:
        """See `Part.apply`."""
        number, length = block.document_ids.shape
        begins = np.ones((number, length), bool)
        begins[:, 1:] = block.document_ids[:, 1:] != block.document_ids[:, :-1]
        start = np.flatnonzero(begins)
        end = np.append(start[1:], begins.size)
        row = start // length
        keys = self._context.keys(block, "prefix")[row]
        # numbered inside the window by where they lie, so that draws do not depend on the other windows of the block
        apply, where = uniform(keys[:, None], (2 * (start % length))[:, None] + np.arange(2)).T
        chosen = apply < self._rates[np.asarray(block.source_ids)][row]
        if block.padding is not None:
            chosen &= ~block.padding[:, :-1].ravel()[start]
        cut = self._cuts(block, start, end, where)
        chosen &= cut > start
        flags = np.zeros(number * length + 1, np.int64)
        np.add.at(flags, start[chosen], 1)
        np.add.at(flags, cut[chosen], -1)
        prefix = np.cumsum(flags)[:-1].astype(np.uint8).reshape(number, length)
        block.prefix = prefix
        inside = np.zeros(block.tokens.shape, bool)
        inside[:, :-1] = prefix.astype(bool) & ~begins  # the end-of-text that opens a document is the last target of the one before it
        block.exclude(inside)

    def _cuts(self, block: Block, start: np.ndarray, end: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Where the prefix of each document ends, flat; its start where it has none."""
        if self._until is None:
            return start + 1 + (where * (end - start)).astype(np.int64)
        found = np.flatnonzero(block.seen == self._until)
        place = np.searchsorted(found, start)
        first = np.append(found, end[-1])[place]
        return np.where(first < end, first + 1, start)
