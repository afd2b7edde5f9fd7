"""The model chunks of a rank in megatron-core's wrappers, and its pipeline schedules over them.

A chunk is what the rank holds of one virtual pipeline stage; without virtual stages there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import tee
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_codemix.config import ParallelConfig, RunConfig
from megatron_codemix.engine.forward import DeviceBatch
from megatron_codemix.engine.interface import TokenBatch
from megatron_codemix.engine.own_time import OwnTime
from megatron_codemix.errors import UserError
from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology

Forward = Callable[[Any, Any], tuple[Tensor, Any]]
"""What megatron-core's schedules call for each micro-batch and chunk: (iterator of DeviceBatch, chunk) → (output, its loss function)."""

BUCKET_ELEMENTS: int | None = None
"""Gradients exchanged at a time where that overlaps with the backward pass; None: megatron-core's 40 million or more."""


class Replicas:
    """The chunks of a rank with gradient buffers, reduced over the ranks that see other tokens (data × context)."""

    def __init__(self, config: RunConfig, megatron_config: TransformerConfig, chunks: list[LanguageModel], topology: Topology) -> None:
        """Wraps `chunks` and writes the hooks that the schedules look for into `megatron_config`."""
        self.config, self.topology, self.chunks = config, topology, chunks
        reduce = _reduction(config.parallel)
        wrapped = [Float16Module(megatron_config, chunk) if config.precision == "bf16" else chunk for chunk in chunks]
        # only the first chunk's exchange is worth splitting: it alone is on the critical path
        self.wrapped: list[Any] = [
            DistributedDataParallel(megatron_config, reduce, chunk, disable_bucketing=number > 0) for number, chunk in enumerate(wrapped)
        ]
        """The chunks as the optimizer and the schedules want them."""
        self.own_time = OwnTime(topology.device)
        """Begun by the engine with a step; ended when gradients are to be reduced."""
        _set_hooks(megatron_config, reduce, self.wrapped, self.own_time)
        self._gathers_late = reduce.overlap_param_gather
        self._is_gathered = not self._gathers_late
        self._run_schedule = get_forward_backward_func()

    def zero_gradients(self) -> None:
        """Empty the gradient buffers."""
        for replica in self.wrapped:
            replica.zero_grad_buffer()

    def train(self) -> None:
        """Put the chunks in training mode."""
        for chunk in self.chunks:
            chunk.train()

    def eval(self) -> None:
        """Put the chunks in evaluation mode, with the weights of the last step. Collective."""
        self.gather_weights()
        for chunk in self.chunks:
            chunk.eval()

    def stepped(self) -> None:
        """To be called when the optimizer has changed the weights."""
        self._is_gathered = not self._gathers_late

    def gather_weights(self) -> None:
        """Have the whole weights on every rank, as they are after the last step. Collective over data × context ranks.

        With overlapped gathers they come in only as the next training step's forward pass asks for them.
        """
        if not self._is_gathered:
            for replica in self.wrapped:
                replica.start_param_sync(force_sync=True)
            self._is_gathered = True

    def run(self, forward: Forward, batches: Sequence[TokenBatch], *, mode: str) -> list[Any]:
        """Run a schedule over micro-batches of one shape; returns what `forward` recorded of each: nothing but on the last stage.

        mode: "train" (with backward pass and reduced gradients), "evaluate" (the loss function's record) or
        "collect" (the loss function's whole answer). Collective over the model-parallel ranks; "train" over all.
        """
        batches = self._whole_rounds(batches, may_repeat=mode != "train")
        windows, positions = batches[0].tokens.shape
        return self._run_schedule(
            forward_step_func=forward,
            data_iterator=self._iterators(batches),
            model=self.wrapped,
            num_microbatches=len(batches),
            seq_length=positions,
            micro_batch_size=windows,
            forward_only=mode != "train",
            collect_non_loss_data=mode == "collect",
        )

    def _iterators(self, batches: Sequence[TokenBatch]) -> Any:
        """One iterator per chunk; a micro-batch is brought to the device once and kept until the last chunk has seen it."""
        masking, device, context = self.config.document_masking, self.topology.device, self.topology.context
        return list(tee((DeviceBatch.of(batch, device, masking, context) for batch in batches), len(self.chunks)))

    def _whole_rounds(self, batches: Sequence[TokenBatch], *, may_repeat: bool) -> Sequence[TokenBatch]:
        """The interleaved schedule takes micro-batches in rounds of the pipeline's size."""
        missing = -len(batches) % self.topology.pipeline.size
        if len(self.chunks) == 1 or not missing:
            return batches
        if not may_repeat:
            raise UserError(
                f"parallel.virtual_stages: {len(batches)} micro-batches per data-parallel rank are not a multiple of "
                f"parallel.pipeline {self.topology.pipeline.size}; change batch_size or micro_batch_size, or set virtual_stages to 1"
            )
        return [*batches, *[batches[-1]] * missing]


def _reduction(parallel: ParallelConfig) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        bucket_size=BUCKET_ELEMENTS,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        # all stages gather at the same moment; the schedule, which knows it, starts it
        align_param_gather=parallel.overlap_param_gather and parallel.virtual_stages > 1,
        use_distributed_optimizer=parallel.distributed_optimizer,
    )


def _set_hooks(
    megatron_config: Any, reduce: DistributedDataParallelConfig, replicas: list[DistributedDataParallel], own_time: OwnTime
) -> None:
    """What Megatron-LM's training loop tells the schedules: how to hold back, start and finish the exchange of gradients and weights."""

    def one_or_all(functions: list[Any]) -> Any:
        return functions if len(functions) > 1 else functions[0]

    def finalize(*arguments: Any, **keywords: Any) -> None:
        own_time.end()
        finalize_model_grads(*arguments, **keywords)

    megatron_config.finalize_model_grads_func = finalize
    if reduce.overlap_grad_reduce:
        megatron_config.no_sync_func = one_or_all([replica.no_sync for replica in replicas])
        megatron_config.grad_sync_func = one_or_all([replica.start_grad_sync for replica in replicas])
    if reduce.align_param_gather:
        megatron_config.param_sync_func = one_or_all([replica.start_param_sync for replica in replicas])


def stacked(records: list[Any], device: torch.device) -> Tensor:
    """Σ of the pairs (Σ loss, targets) that `evaluation_forward` or `training_forward` recorded, fp64 (2,); zero where nothing was."""
    return torch.stack(records).sum(0) if records else torch.zeros(2, dtype=torch.float64, device=device)
