"""How much memory a run needs per rank, from its config alone: states exactly (`states.py`), activations estimated (`activations.py`).

No torch, no GPU. What is not counted (the CUDA context, NCCL's buffers, fragmentation, transients of single operators) is what
`RESERVE` is for where a layout has to fit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from megatron_codemix.config import ModelConfig, ParallelConfig, RunConfig, Stage, sizes_of
from megatron_codemix.train.activations import (
    MicroBatch,
    embedding_bytes,
    head_backward_bytes,
    head_bytes,
    in_flight_bytes,
    layer_backward_bytes,
    mask_bytes,
    recompute_bytes,
    sent_bytes,
    stage_bytes,
)
from megatron_codemix.train.states import precision_bytes, rank_states
from megatron_codemix.train.zero import zero_states

RESERVE = 0.1
"""Share of a device's memory that a proposed layout leaves free for what the estimate does not count."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank at its peak."""

    pipeline_rank: int
    """Position in the pipeline of the rank."""
    parameters: int
    """Parameters that the rank holds, a number."""
    weights: int
    """Parameters in the model's precision."""
    gradients: int
    """Gradient buffers, always fp32."""
    optimizer: int
    """Two fp32 moments, and fp32 master weights when the model's precision is lower."""
    activations: int
    """Estimate: what all micro-batches in flight keep for their backward pass."""
    logits: int
    """Estimate: final norm and logits of one micro-batch, and what the loss needs beside them; last pipeline rank only."""
    recompute: int
    """Estimate: what the backward pass computes again at a time."""
    head_backward: int
    """Estimate: passing gradients while the output layer's backward pass runs; last pipeline rank only."""
    layer_backward: int
    """Estimate: passing gradients while a layer's backward pass runs."""

    @property
    def states(self) -> int:
        """Weights, gradients and optimizer, bytes."""
        return self.weights + self.gradients + self.optimizer

    @property
    def saved(self) -> int:
        """Most that is kept for backward passes at a time, bytes: the logits have gone when layers begin to compute again."""
        return self.activations + max(self.logits, self.recompute)

    @property
    def passing(self) -> int:
        """What the peak holds beside states and activations in flight, bytes: at the output layer or at a layer."""
        return max(self.logits + self.head_backward, self.recompute + self.layer_backward)

    @property
    def total(self) -> int:
        """The peak, bytes."""
        return self.states + self.activations + self.passing


def rank_memory(config: RunConfig, rows: int, *, pipeline_rank: int, data_ranks: int = 1, device: str = "cuda") -> MemoryEstimate:
    """Memory of the ranks at one position of the pipeline, in the most demanding stage of training.

    rows: padded vocabulary size. data_ranks: data-parallel ranks, over which the distributed optimizer splits.
    device: "cuda", or "cpu", where operators keep other things.
    """
    parallel = config.parallel
    if config.engine == "deepspeed":
        states = zero_states(config, rows, pipeline_rank=pipeline_rank, data_ranks=data_ranks)
    else:
        states = rank_states(config.model, parallel, rows, config.precision, pipeline_rank=pipeline_rank, data_ranks=data_ranks)
    is_last = pipeline_rank == parallel.pipeline - 1
    peaks = []
    for stage in config.stages:
        batch = MicroBatch(
            config.micro_batch_size, stage.sequence_length, precision_bytes(config.precision), device, masked=config.document_masking
        )
        kept, again = _activations(config.model, parallel, batch, pipeline_rank, _micro_batches(config, stage, data_ranks))
        peaks.append(
            MemoryEstimate(
                pipeline_rank=pipeline_rank,
                **asdict(states),
                activations=kept,
                logits=head_bytes(config.model, rows, parallel, batch) if is_last else 0,
                recompute=again,
                head_backward=head_backward_bytes(config.model, rows, parallel, batch) if is_last else 0,
                layer_backward=layer_backward_bytes(config.model, parallel, batch),
            )
        )
    return max(peaks, key=lambda memory: memory.total)


def estimate(config: RunConfig, rows: int, data_ranks: int = 1, device: str = "cuda") -> MemoryEstimate:
    """Memory of the pipeline position that needs most. rows: padded vocabulary size."""
    ranks = [
        rank_memory(config, rows, pipeline_rank=rank, data_ranks=data_ranks, device=device) for rank in range(config.parallel.pipeline)
    ]
    return max(ranks, key=lambda memory: memory.total)


def most_parameters(config: RunConfig, rows: int) -> int:
    """Parameters of the rank that holds most of them."""
    parallel = config.parallel
    return max(
        rank_states(config.model, parallel, rows, config.precision, pipeline_rank=rank).parameters for rank in range(parallel.pipeline)
    )


def _activations(
    model: ModelConfig, parallel: ParallelConfig, batch: MicroBatch, pipeline_rank: int, micro_batches: int
) -> tuple[int, int]:
    """What all micro-batches in flight keep, and what is computed again at a time."""
    counts = parallel.stage_layers(model.num_layers)
    mine = range(pipeline_rank, len(counts), parallel.pipeline)
    kept = [
        stage_bytes(model, parallel, batch, counts[stage])
        + (embedding_bytes(model, parallel, batch) if stage == 0 else 0)
        + (sent_bytes(model, parallel, batch) if stage < len(counts) - 1 else 0)
        for stage in mine
    ]
    again = max(recompute_bytes(model, parallel, batch, counts[stage]) for stage in mine)
    masks = mask_bytes(parallel, batch, micro_batches)
    return in_flight_bytes(kept, parallel, pipeline_rank, micro_batches) + masks, again


def _micro_batches(config: RunConfig, stage: Stage, data_ranks: int) -> int:
    return max(sizes_of(stage.batch_size)[-1] // (config.micro_batch_size * data_ranks), 1)
