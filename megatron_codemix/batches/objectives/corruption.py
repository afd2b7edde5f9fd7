"""Replaced inputs: `<mask>` or a random token in the place of some, singly or in spans; what is predicted stays.

Spans begin at each token with probability q, independently, with geometric lengths of mean m; a token is replaced where one lies on
it, so overlapping spans merge. Far from a document's beginning a token is left alone with probability

    Π_{k ≥ 0} (1 − q · (1 − 1/m)^k) = 1 − rate,

which is solved for q. With m = 1 tokens are drawn one by one, as in BERT (Devlin et al. 2019, arXiv 1810.04805, section 3.1).
"""

from __future__ import annotations

import math

import numpy as np

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.draws import uniform
from megatron_codemix.batches.objectives.part import Context
from megatron_codemix.config import CorruptionConfig
from megatron_codemix.config.objective import MASK_SYMBOL
from megatron_codemix.config.section import exact_share
from megatron_codemix.shards import TEXT_KINDS, Kind

_DRAWS = 4
"""Of each token: does a span begin, how long is it, mask or random, which token."""


class InputCorruption:
    """Replaces ordinary input tokens of some kinds."""

    def __init__(self, settings: CorruptionConfig, context: Context) -> None:
        self._context, self._settings = context, settings
        self._starts = np.array([start_probability(rate, settings.mean_span) for rate in context.rates(settings.rate)])
        self._mask_id = context.tokenizer.special_ids[MASK_SYMBOL]
        self._mask_share = float(exact_share(settings.mask_share))
        self._ordinary = np.flatnonzero(~context.is_control)
        self._wanted = np.zeros(256, bool)
        for kind in Kind:
            self._wanted[kind] = settings.kinds == "all" or (kind in TEXT_KINDS) == (settings.kinds == "text")

    def apply(self, block: Block) -> None:
        """See `Part.apply`."""
        length = block.document_ids.shape[1]
        keys = self._context.keys(block, "corruption")
        places = np.arange(length) * _DRAWS
        starts = self._starts[np.asarray(block.source_ids)][:, None]
        replaced = self._covered(uniform(keys[:, None], places) < starts, keys, places, block.document_ids)
        replaced &= self._wanted[block.kinds[:, :-1]] & ~self._context.is_control[block.seen]
        rows, columns = np.nonzero(replaced)
        masked = uniform(keys[rows], places[columns] + 2) < self._mask_share
        drawn = self._ordinary[(uniform(keys[rows], places[columns] + 3) * len(self._ordinary)).astype(np.int64)]
        block.own_inputs()[rows, columns] = np.where(masked, self._mask_id, drawn)
        if not self._settings.loss_on_corrupted:
            block.exclude(np.pad(replaced, ((0, 0), (0, 1))))

    def _covered(self, begins: np.ndarray, keys: np.ndarray, places: np.ndarray, document_ids: np.ndarray) -> np.ndarray:
        """bool (n, S): under a span; spans end with their document."""
        if self._settings.mean_span == 1.0:
            return begins
        rows, columns = np.nonzero(begins)
        longer = 1.0 - uniform(keys[rows], places[columns] + 1)  # in (0, 1]
        lengths = 1 + np.floor(np.log(longer) / math.log1p(-1.0 / self._settings.mean_span)).astype(np.int64)
        # where each document ends: columns of a row are sorted by document
        last = np.ones(document_ids.shape, bool)
        last[:, :-1] = document_ids[:, 1:] != document_ids[:, :-1]
        length = document_ids.shape[1]
        ends = np.where(last, np.arange(1, length + 1), length)
        document_ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        reach = np.zeros(begins.shape, np.int64)
        reach[rows, columns] = np.minimum(columns + lengths, document_ends[rows, columns])
        return np.maximum.accumulate(reach, axis=1) > np.arange(length)


def start_probability(rate: float, mean_span: float) -> float:
    """Probability with which a span begins at a token, so that `rate` of the tokens lie under one. rate in [0, 1), mean_span ≥ 1."""
    if rate == 0.0 or mean_span == 1.0:
        return rate
    survival = 1.0 - 1.0 / mean_span
    powers = survival ** np.arange(math.ceil(-40.0 / math.log(survival)))
    low, high = 0.0, rate
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if -math.expm1(np.log1p(-middle * powers).sum()) < rate else (low, middle)
    return high
