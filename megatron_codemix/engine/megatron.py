"""The default engine: megatron-core's DDP, schedules and optimizer around our model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import state
from megatron_codemix.engine.base import BaseEngine
from megatron_codemix.engine.chunks import Replicas, stacked
from megatron_codemix.engine.forward import training_forward
from megatron_codemix.engine.interface import Accept, StepResult, TokenBatch
from megatron_codemix.engine.optimizer import build_optimizer, count_on, gradient_norm, set_learning_rate, update
from megatron_codemix.model import build_chunks, transformer_config
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader


class MegatronEngine(BaseEngine):
    """A model in training. On CPU, two runs of one config give the same bits.

    with Topology.join(config.parallel, seed=config.seeds.init) as topology:
        engine = MegatronEngine(config, vocab_size, topology)
        engine.train_step(loader.batches(0), learning_rate=3e-4)
    """

    _replicas: Replicas

    def __init__(self, config: RunConfig, vocab_size: int, topology: Topology) -> None:
        """vocab_size: entries of the tokenizer. The topology must have been joined with the run's layout."""
        super().__init__(config, vocab_size, topology)
        megatron_config = transformer_config(config)
        self.chunks = build_chunks(config, vocab_size, megatron_config)
        self._replicas = Replicas(config, megatron_config, self.chunks, topology)
        self._optimizer = build_optimizer(config, self._replicas.wrapped)
        self._parameters = list(state.local_parameters(self.chunks, topology))
        self.pieces()  # what could not be saved must not be trained first

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

    def load_pieces(self, reader: PieceReader, optimizer: bool = True) -> None:
        """Take over a saved state, whichever layout wrote it. Collective.

        At the layout that wrote it, training then continues (on CPU, bit for bit) as if it had never stopped.
        optimizer=False: the weights alone, with their master weights; moments and step stay as they are. The config's
        hyperparameters hold. Raises UserError for another model, or for weights alone where the optimizer's state is wanted.
        """
        self._replicas.gather_weights()  # so that none is under way that would overwrite what is loaded
        state.load(self._parameters, self._masters(), reader, self.topology, moments=optimizer)
        if optimizer:
            self.step = reader.step

    def _masters(self) -> Mapping[Tensor, state.Master]:
        return dict(state.megatron_masters(self._optimizer))
