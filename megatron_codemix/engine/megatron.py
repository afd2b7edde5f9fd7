"""The default engine: megatron-core's DDP, schedules and optimizer around our model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, islice

import torch
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import state
from megatron_codemix.engine.chunks import Replicas, stacked
from megatron_codemix.engine.forward import evaluation_forward, training_forward
from megatron_codemix.engine.interface import Accept, StepResult, TokenBatch
from megatron_codemix.engine.optimizer import build_optimizer, count_on, gradient_norm, set_learning_rate, update
from megatron_codemix.engine.probabilities import log_probabilities
from megatron_codemix.model import LanguageModel, build_chunks, transformer_config
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import Piece, PieceReader

_EVALUATED_TOGETHER = 8
"""Micro-batches per pipeline stage and call of the schedule in `evaluate`, so that stages overlap."""


class MegatronEngine:
    """A model in training. On CPU, two runs of one config give the same bits.

    with Topology.join(config.parallel, seed=config.seeds.init) as topology:
        engine = MegatronEngine(config, vocab_size, topology)
        engine.train_step(loader.batches(0), learning_rate=3e-4)
    """

    def __init__(self, config: RunConfig, vocab_size: int, topology: Topology) -> None:
        """vocab_size: entries of the tokenizer. The topology must have been joined with the run's layout."""
        self.config, self.vocab_size, self.topology = config, vocab_size, topology
        self.step = 0
        """Steps done, those without an update among them."""
        self.own_seconds = 0.0
        """Of the last `train_step`, before this rank had to wait for the gradients of other data-parallel ranks."""
        self._key_generators(0)
        megatron_config = transformer_config(config)
        self.chunks = build_chunks(config, vocab_size, megatron_config)
        """This rank's part of the model, without wrappers: one module per virtual pipeline stage."""
        self._replicas = Replicas(config, megatron_config, self.chunks, topology)
        self._optimizer = build_optimizer(config, self._replicas.wrapped)
        self.pieces()  # what could not be saved must not be trained first

    @property
    def model(self) -> LanguageModel:
        """This rank's part of the model where the layout has no virtual stages; else its first chunk."""
        return self.chunks[0]

    def train_step(self, batches: Sequence[TokenBatch], learning_rate: float, accept: Accept | None = None) -> StepResult:
        """One optimizer step on this rank's micro-batches (equal in number and shape on all ranks). Collective.

        The objective is Σ weight · loss over the integer number of targets of the global batch, whatever the
        number of ranks and micro-batches. A batch without any target leaves gradients of zero. accept: may refuse the
        update; weights and moments then stay as they are, and the step counts as one that is passed over. Raises UserError
        where virtual pipeline stages do not take this number of micro-batches.
        """
        self._key_generators(self.step)
        self._replicas.train()
        self._replicas.zero_gradients()
        self._optimizer.zero_grad()
        self._replicas.own_time.begin()
        records = self._replicas.run(training_forward, batches, mode="train")
        set_learning_rate(self._optimizer, learning_rate)
        own_norm = gradient_norm(self._optimizer)
        loss_sum, target_tokens = self._sum_over_ranks(stacked(records, self.topology.device))
        self.own_seconds = self._replicas.own_time.seconds
        loss_sum, grad_norm = self.topology.worst_of(loss_sum, own_norm)
        result = StepResult(loss_sum, int(target_tokens), grad_norm)
        if accept is not None and not accept(result):
            self.pass_over()
            return replace(result, updated=False)
        update(self._optimizer, own_norm)
        self._replicas.stepped()
        self.step += 1
        return result

    def pass_over(self) -> None:
        """Count a step without an update: `step` and AdamW's count of updates go on, nothing else changes."""
        count_on(self._optimizer)
        self.step += 1

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

    def log_probabilities(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """float32 (B, S, vocab_size): natural-log probabilities of the token after each position. Collective.

        tokens: int64 (B, S), the same on all ranks of a data-parallel group, each of which gets the whole result.
        document_ids: int64 (B, S), or None: each row is one document. Padding rows are outside the softmax.
        """
        return log_probabilities(self._replicas, tokens, document_ids, self.vocab_size)

    def pieces(self) -> list[Piece]:
        """What this rank must save of weights and optimizer state: views of live memory, valid until the next `train_step`."""
        return state.live_pieces(self.chunks, self._optimizer, self.topology)

    def load_pieces(self, reader: PieceReader, optimizer: bool = True) -> None:
        """Take over a saved state, whichever layout wrote it. Collective.

        At the layout that wrote it, training then continues (on CPU, bit for bit) as if it had never stopped.
        optimizer=False: the weights alone, with their master weights; moments and step stay as they are. The config's
        hyperparameters hold. Raises UserError for another model, or for weights alone where the optimizer's state is wanted.
        """
        self._replicas.gather_weights()  # so that none is under way that would overwrite what is loaded
        state.load(self.chunks, self._optimizer, reader, self.topology, moments=optimizer)
        if optimizer:
            self.step = reader.step

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
