"""What engines share, whichever library steps the optimizer: evaluation, log-probabilities, pieces, keyed generators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import state
from megatron_codemix.engine.chunks import stacked
from megatron_codemix.engine.forward import evaluation_forward
from megatron_codemix.engine.interface import TokenBatch
from megatron_codemix.engine.passes import Passes
from megatron_codemix.engine.probabilities import log_probabilities
from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import Piece

_EVALUATED_TOGETHER = 8
"""Micro-batches per pipeline stage and call of the schedule in `evaluate`, so that stages overlap."""


class BaseEngine:
    """A model in training, without the step itself."""

    _replicas: Passes

    def __init__(self, config: RunConfig, vocab_size: int, topology: Topology) -> None:
        """vocab_size: entries of the tokenizer. The topology must have been joined with the run's layout."""
        self.config, self.vocab_size, self.topology = config, vocab_size, topology
        self.step = 0
        """Steps done, those without an update among them."""
        self.own_seconds = 0.0
        """Of the last `train_step`, before this rank had to wait for the gradients of other data-parallel ranks."""
        self.swap_folder: Path | None = None
        """Where this rank keeps on disk what has no room in memory; it goes with the engine."""
        self.chunks: list[LanguageModel] = []
        """This rank's part of the model, without wrappers: one module per virtual pipeline stage."""
        self._parameters: list[state.Local] = []
        self._key_generators(0)

    @property
    def model(self) -> LanguageModel:
        """This rank's part of the model where the layout has no virtual stages; else its first chunk."""
        return self.chunks[0]

    def evaluate(self, batches: Iterable[TokenBatch]) -> tuple[float, int]:
        """Σ loss in nats (without weights) and the number of targets over all batches of all data-parallel ranks. Collective.

        Each rank passes its own share; numbers of micro-batches may differ between data-parallel ranks.
        """
        record = torch.zeros(2, dtype=torch.float64, device=self.topology.device)
        at_once = _EVALUATED_TOGETHER * self.topology.pipeline.size
        self._replicas.eval()
        with torch.no_grad():
            for _, alike in groupby(batches, key=lambda batch: batch.tokens.shape):  # the schedule wants one shape a call
                while together := list(islice(alike, at_once)):
                    records = self._replicas.run(evaluation_forward, together, mode="evaluate")
                    # behind them lie those of micro-batches that were repeated to fill a round
                    record += stacked(records[: len(together)], self.topology.device)
        nats, target_tokens = self._sum_over_ranks(record)
        return nats, int(target_tokens)

    def log_probabilities(self, tokens: Tensor, document_ids: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
        """float32 (B, S, vocab_size): natural-log probabilities of the token after each position. Collective.

        tokens: int64 (B, S), the same on all ranks of a data-parallel group, each of which gets the whole result.
        document_ids: int64 (B, S), or None: each row is one document. prefix: integer (B, S), 1 where a position is seen by all of
        its document, or None. Padding rows are outside the softmax.
        """
        return log_probabilities(self._replicas, tokens, document_ids, prefix, self.vocab_size)

    def pieces(self) -> list[Piece]:
        """What this rank must save of weights and optimizer state: views of live memory, valid until the next `train_step`."""
        return state.live_pieces(self._parameters, self._masters(), self.topology)

    def _masters(self) -> Mapping[Tensor, state.Master]:
        """What the optimizer holds on this rank, by the parameter that it is of."""
        raise NotImplementedError

    def _sum_over_ranks(self, record: Tensor) -> tuple[float, float]:
        """Sum over data-parallel ranks; other pipeline stages take the last one's figures."""
        for axis in (self.topology.data_and_context, self.topology.pipeline):
            if axis.size > 1:
                torch.distributed.all_reduce(record, group=axis.group)
        first, second = record.tolist()
        return first, second

    def _key_generators(self, step: int) -> None:
        """Key every generator by (dropout seed, step, pipeline stage, data rank); megatron-core adds the tensor rank.

        So no generator's state is ever saved, and a resumed run draws what the uninterrupted one would.
        """
        topology = self.topology
        role = (self.config.seeds.dropout, step, topology.pipeline.rank, topology.data_and_context.rank)
        digest = hashlib.sha256("\0".join(map(str, ("dropout", *role))).encode()).digest()
        topology.seed(int.from_bytes(digest[:8], "big") >> 2)  # megatron-core adds small offsets to it
