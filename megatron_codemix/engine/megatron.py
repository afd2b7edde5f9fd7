"""The default engine: megatron-core's DDP, schedules, optimizer and checkpoints around our model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import weights
from megatron_codemix.engine.forward import DeviceBatch, evaluation_forward, training_forward
from megatron_codemix.engine.interface import StepResult, TokenBatch
from megatron_codemix.engine.optimizer import build_optimizer, load_state, set_learning_rate
from megatron_codemix.model import build_model, transformer_config
from megatron_codemix.parallel import Topology

_EVALUATED_TOGETHER = 8
"""Micro-batches per call of the schedule in `evaluate`, so that pipeline stages overlap."""


class MegatronEngine:
    """A model in training. Two runs of one config give the same bits.

    with Topology.join(config.parallel, seed=config.seeds.init) as topology:
        engine = MegatronEngine(config, vocab_size, topology)
        engine.train_step(loader.batches(0), learning_rate=3e-4)
    """

    def __init__(self, config: RunConfig, vocab_size: int, topology: Topology) -> None:
        """vocab_size: entries of the tokenizer. The topology must have been joined with the run's layout."""
        self.config, self.vocab_size, self.topology = config, vocab_size, topology
        self.step = 0
        """Optimizer steps done."""
        self._key_generators(0)
        megatron_config = transformer_config(config)
        self.model = build_model(config, vocab_size, megatron_config)
        """This rank's part of the model (`model.LanguageModel`), without wrappers."""
        wrapped = Float16Module(megatron_config, self.model) if config.precision == "bf16" else self.model
        reduce = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=False)
        self._replica = DistributedDataParallel(megatron_config, reduce, wrapped)
        self._optimizer = build_optimizer(config, [self._replica])
        megatron_config.finalize_model_grads_func = finalize_model_grads  # pyright: ignore[reportAttributeAccessIssue]
        self._run_schedule = get_forward_backward_func()

    def train_step(self, batches: Sequence[TokenBatch], learning_rate: float) -> StepResult:
        """One optimizer step on this rank's micro-batches (equal in number and shape on all ranks). Collective.

        The objective is Σ weight · loss over the integer number of targets of the global batch, whatever the
        number of ranks and micro-batches. A batch without any target leaves gradients of zero.
        """
        self._key_generators(self.step)
        self.model.train()
        self._replica.zero_grad_buffer()
        self._optimizer.zero_grad()
        record = self._schedule(training_forward, batches, forward_only=False)
        set_learning_rate(self._optimizer, learning_rate)
        updated, grad_norm, _ = self._optimizer.step()  # pyright: ignore[reportGeneralTypeIssues]
        assert updated, "only a loss scaler skips a step, and there is none"
        self.step += 1
        loss_sum, target_tokens = self._sum_over_ranks(record)
        return StepResult(loss_sum, int(target_tokens), float(grad_norm))

    def evaluate(self, batches: Iterable[TokenBatch]) -> tuple[float, int]:
        """Σ loss in nats (without weights) and the number of targets over all batches of all data-parallel ranks. Collective.

        Each rank passes its own share; numbers of micro-batches may differ between ranks.
        """
        record = torch.zeros(2, dtype=torch.float64, device=self.topology.device)
        self.model.eval()
        with torch.no_grad():
            for _, alike in groupby(batches, key=lambda batch: batch.tokens.shape):  # the schedule wants one shape a call
                while together := list(islice(alike, _EVALUATED_TOGETHER)):
                    record += self._schedule(evaluation_forward, together, forward_only=True)
        nats, target_tokens = self._sum_over_ranks(record)
        return nats, int(target_tokens)

    @torch.no_grad()
    def log_probabilities(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """float32 (B, S, vocab_size): natural-log probabilities of the token after each position.

        tokens: int64 (B, S). document_ids: int64 (B, S), or None: each row is one document. Padding rows are
        outside the softmax. Needs a layout without pipeline stages.
        """
        assert self.topology.pipeline.size == 1, "the logits are on the last stage alone"
        device = self.topology.device
        self.model.eval()
        ids = None if document_ids is None else document_ids.to(device)
        positions = torch.arange(tokens.size(1), device=device).expand(tokens.shape)
        return self.model.log_probabilities(self.model(tokens.to(device), positions, ids))

    def save_weights(self, folder: Path, optimizer: bool = True) -> None:
        """Write weights, step and (if asked) optimizer state into an existing empty folder. Collective."""
        state = self._sharded_state(optimizer, is_loading=False)
        state["step"] = self.step
        weights.save(state, folder)

    def load_weights(self, folder: Path, optimizer: bool = True) -> None:
        """Read what `save_weights` wrote; training then continues (on CPU, bit for bit) as if it had never stopped. Collective.

        optimizer=False: the weights alone; moments and step stay as they are, master weights follow the weights.
        The config's hyperparameters hold, not the checkpoint's. Raises UserError for a checkpoint of another
        model, or of weights alone where the optimizer's state is wanted.
        """
        loaded = weights.load(self._sharded_state(optimizer, is_loading=True), folder)
        self.model.load_state_dict(loaded["model"])
        if not optimizer:
            self._optimizer.reload_model_params()
            return
        load_state(self.config, self._optimizer, loaded["optimizer"])
        self.step = loaded["step"]

    def _sharded_state(self, optimizer: bool, *, is_loading: bool) -> dict[str, Any]:
        metadata = {"dp_cp_group": self.topology.data_and_context.group}
        state: dict[str, Any] = {"model": self.model.sharded_state_dict(metadata=metadata)}
        if optimizer:
            state["optimizer"] = self._optimizer.sharded_state_dict(state["model"], is_loading=is_loading, metadata=metadata)
        return state

    def _schedule(self, forward: Any, batches: Sequence[TokenBatch], *, forward_only: bool) -> Tensor:
        """Run megatron-core's schedule; returns (Σ loss, targets) of this rank, fp64 (2,): zero but on the last pipeline stage."""
        windows, positions = batches[0].tokens.shape
        masking, device = self.config.document_masking, self.topology.device
        on_device: Iterator[DeviceBatch] = (DeviceBatch.of(batch, device, masking) for batch in batches)
        records = self._run_schedule(
            forward_step_func=forward,
            data_iterator=on_device,
            model=self._replica,
            num_microbatches=len(batches),
            seq_length=positions,
            micro_batch_size=windows,
            forward_only=forward_only,
        )
        return torch.stack(records).sum(0) if records else torch.zeros(2, dtype=torch.float64, device=device)

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
