"""The engine of `engine: deepspeed`: the same model, loss and figures, stepped by DeepSpeed's ZeRO.

Rajbhandari et al. 2020, arXiv 1910.02054: data-parallel ranks split the optimizer's state (stage 1), gradients (2), weights (3);
Ren et al. 2021, arXiv 2101.06840: state in host memory. Checkpoints are ours (engine/state.py); DeepSpeed's are never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import state
from megatron_codemix.engine.base import BaseEngine
from megatron_codemix.engine.chunks import stacked
from megatron_codemix.engine.forward import evaluation_forward
from megatron_codemix.engine.interface import Accept, StepResult, TokenBatch
from megatron_codemix.engine.own_time import OwnTime
from megatron_codemix.engine.probabilities import least_length, windows_without_targets
from megatron_codemix.engine.zero.adamw import GatedAdamW
from megatron_codemix.engine.zero.gradients import mark_copies, sum_over_tensor_ranks
from megatron_codemix.engine.zero.grid import Grid
from megatron_codemix.engine.zero.library import import_deepspeed
from megatron_codemix.engine.zero.masters import create_state, flush, weights_from_masters, zero_masters
from megatron_codemix.engine.zero.nvme import SwapFolder
from megatron_codemix.engine.zero.passes import ZeroPasses
from megatron_codemix.engine.zero.settings import deepspeed_settings
from megatron_codemix.model import build_model, transformer_config
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader


class DeepSpeedEngine(BaseEngine):
    """A model in training under ZeRO; see `engine.Engine`. Build it with `engine.build_engine`."""

    _replicas: ZeroPasses

    def __init__(self, config: RunConfig, vocab_size: int, topology: Topology) -> None:
        """As `MegatronEngine`. Raises UserError where DeepSpeed is missing, or not the proven release."""
        super().__init__(config, vocab_size, topology)
        deepspeed = import_deepspeed()
        megatron_config = transformer_config(config)
        chunk = build_model(config, vocab_size, megatron_config)
        self.chunks = [chunk]
        self._parameters = list(state.local_parameters(self.chunks, topology))  # while they are whole
        sum_over_tensor_ranks(chunk, topology)
        mark_copies(chunk, topology)
        self._adamw = GatedAdamW(config, chunk.named_parameters())
        self._swaps = self._open_swaps()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=Float16Module(megatron_config, chunk) if config.precision == "bf16" else chunk,
            optimizer=self._adamw,
            config=deepspeed_settings(config, self.swap_folder, self._largest_part()),
            mpu=Grid(topology),
        )
        create_state(self._optimizer, self._adamw)
        self._replicas = ZeroPasses(config, chunk, self._engine, topology)
        self._own_time = OwnTime(topology.device)
        self.pieces()  # what could not be saved must not be trained first

    def train_step(self, batches: Sequence[TokenBatch], learning_rate: float, accept: Accept | None = None) -> StepResult:
        """One optimizer step on this rank's micro-batches (equal in number and shape on all ranks). Collective.

        Objective, normalisation and `accept` as `MegatronEngine.train_step`. A gradient that is not finite is never applied, whatever
        `accept` says.
        """
        self._key_generators(self.step)
        self._replicas.train()
        targets = self._count_targets(batches)
        self._own_time.begin()
        # DeepSpeed divides by the ranks whose gradients it adds up
        records = self._replicas.accumulate(batches, self.topology.data_and_context.size / max(targets, 1))
        if self.config.deepspeed.zero_stage == 1:
            self._own_time.end()
        loss_sum, counted = self._sum_over_ranks(stacked(records, self.topology.device))
        assert int(counted) == targets, f"{targets} targets were announced, {counted:g} came"
        if self.config.deepspeed.zero_stage == 1:  # with the others, backward passes wait for each other
            self.own_seconds = self._own_time.seconds
        result = self._update(loss_sum, targets, learning_rate, accept)
        if not result.updated:
            self._adamw.count_on()
        self.step += 1
        return result

    def _update(self, loss_sum: float, targets: int, learning_rate: float, accept: Accept | None) -> StepResult:
        result: StepResult | None = None

        def ask() -> bool:
            nonlocal result
            worst_loss, norm = self.topology.worst_of(loss_sum, float(self._optimizer._global_grad_norm))
            result = StepResult(worst_loss, targets, norm)
            return accept is None or accept(result)

        self._adamw.set_learning_rate(learning_rate)
        self._adamw.arm(ask)
        self._engine.step()
        if result is None:  # DeepSpeed found a gradient that is not finite, and passed the step over, on every rank
            worst_loss, norm = self.topology.worst_of(loss_sum, float("nan"))
            result = StepResult(worst_loss, targets, norm)
            if accept is not None:
                accept(result)
        return replace(result, updated=self._adamw.updated)

    def pass_over(self) -> None:
        """Count a step without an update: `step` and AdamW's count of updates go on, nothing else changes."""
        self._adamw.count_on()
        self.step += 1

    def evaluate(self, batches: Iterable[TokenBatch]) -> tuple[float, int]:
        """As `MegatronEngine.evaluate`. In stage 3 data-parallel ranks gather the weights together, so all run as often as the
        one with most micro-batches: the others on windows without targets."""
        if self.config.deepspeed.zero_stage < 3:
            return super().evaluate(batches)
        record = torch.zeros(2, dtype=torch.float64, device=self.topology.device)
        own = iter(batches)
        self._replicas.eval()
        with torch.no_grad():
            while self.topology.any_of((batch := next(own, None)) is not None)[0]:
                record += stacked(self._replicas.run(evaluation_forward, [batch or self._nothing()], mode="evaluate"), record.device)
        nats, target_tokens = self._sum_over_ranks(record)
        return nats, int(target_tokens)

    def _nothing(self) -> TokenBatch:
        """One window of the least length that the layout can cut, without a target."""
        return windows_without_targets(torch.zeros(1, least_length(self.topology), dtype=torch.int64))

    def load_pieces(self, reader: PieceReader, optimizer: bool = True) -> None:
        """Take over a saved state, whichever engine and layout wrote it; as `MegatronEngine.load_pieces`. Collective."""
        is_stage_3 = self.config.deepspeed.zero_stage == 3
        masters = dict(zero_masters(self._optimizer, self._adamw, writable=True))
        state.load(self._parameters, masters, reader, self.topology, moments=optimizer, weights=not is_stage_3)
        if is_stage_3:
            flush(self._optimizer, self._adamw)
            weights_from_masters(self._optimizer)
        if optimizer:
            self.step = reader.step

    def _masters(self) -> Mapping[Tensor, state.Master]:
        return dict(zero_masters(self._optimizer, self._adamw))

    def _open_swaps(self) -> SwapFolder | None:
        wanted = self.config.deepspeed
        if "nvme" not in (wanted.offload_optimizer, wanted.offload_parameters):
            return None
        groups = [[parameter.numel() for parameter in group["params"]] for group in self._adamw.param_groups]
        swaps = SwapFolder(self.config, groups, self.topology)
        self.swap_folder = swaps.path
        return swaps

    def _largest_part(self) -> int:
        """Elements of the largest parameter's part on a rank, while they are whole."""
        return max(-(-local.parameter.numel() // self.topology.data_and_context.size) for local in self._parameters)

    def _count_targets(self, batches: Sequence[TokenBatch]) -> int:
        """Targets of the global batch; context-parallel ranks have the same windows."""
        own: Any = sum(int(batch.target_mask.sum()) for batch in batches)
        count = torch.tensor(own, dtype=torch.int64, device=self.topology.device)
        if self.topology.data.size > 1:
            torch.distributed.all_reduce(count, group=self.topology.data.group)
        return int(count)
