"""Forward and backward passes under ZeRO: by megatron-core's schedule where ZeRO waits for the step, else micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.engine.chunks import Forward
from megatron_codemix.engine.forward import DeviceBatch, training_forward
from megatron_codemix.engine.interface import TokenBatch
from megatron_codemix.engine.zero.gradients import sum_tied
from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology


class ZeroPasses:
    """The model of a rank under DeepSpeed's engine."""

    def __init__(self, config: RunConfig, chunk: LanguageModel, deepspeed_engine: Any, topology: Topology) -> None:
        """deepspeed_engine: what `deepspeed.initialize` made of `chunk`."""
        self.config, self.topology, self.chunks = config, topology, [chunk]
        self._engine = deepspeed_engine
        self._run_schedule = get_forward_backward_func()

    def train(self) -> None:
        """Put the model in training mode."""
        self._engine.train()

    def eval(self) -> None:
        """Put the model in evaluation mode. ZeRO has the weights of the last step everywhere, or gathers them as they are used."""
        self._engine.eval()

    def accumulate(self, batches: Sequence[TokenBatch], scale: float) -> list[Any]:
        """Forward and backward passes of `scale` × the sum of weighted losses. Collective.

        Returns what `training_forward` recorded of each micro-batch: nothing but on the last pipeline stage. Stages 2 and 3 have
        exchanged gradients when it returns, stage 1 does so in its step.
        """
        forward = _scaled(scale)
        if self.config.deepspeed.zero_stage == 1:
            records = self.run(forward, batches, mode="train")
            sum_tied(self.chunks[0], self.topology)
            return records
        records = []
        for batch in self._on_device(batches):
            output, loss = forward(iter([batch]), self._engine)
            total, _, record = loss(output)
            self._engine.backward(total, scale_wrt_gas=False)
            records.append(record)
        return records

    def run(self, forward: Forward, batches: Sequence[TokenBatch], *, mode: str) -> list[Any]:
        """As `chunks.Replicas.run`; "train" for stage 1 alone, without any exchange between data-parallel ranks."""
        windows, positions = batches[0].tokens.shape
        return self._run_schedule(
            forward_step_func=forward,
            data_iterator=self._on_device(batches),
            model=[self._engine.module],
            num_microbatches=len(batches),
            seq_length=positions,
            micro_batch_size=windows,
            forward_only=mode != "train",
            collect_non_loss_data=mode == "collect",
        )

    def _on_device(self, batches: Sequence[TokenBatch]) -> Iterator[DeviceBatch]:
        masking, device, context = self.config.document_masking, self.topology.device, self.topology.context
        return (DeviceBatch.of(batch, device, masking, context) for batch in batches)


def _scaled(scale: float) -> Forward:
    """`training_forward` with its loss times `scale`: known before the backward pass, since ZeRO reduces while that runs."""

    def forward(batches: Any, model: Any) -> tuple[Tensor, Any]:
        output, loss = training_forward(batches, model)

        def scaled(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            total, count, record = loss(losses)
            return total * scale, count, record

        return output, scaled

    return forward
