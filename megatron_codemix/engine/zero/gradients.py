"""Gradients that ZeRO does not add up by itself: of what tensor-parallel ranks and tied embeddings hold in common."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology


def sum_over_tensor_ranks(chunk: LanguageModel, topology: Topology) -> None:
    """Have gradients of weights that each tensor-parallel rank holds whole, and sees a part of, summed over them as they arise.

    Those are the weights that megatron-core's `finalize_model_grads` sums: of norms and biases with sequence parallelism, which see
    a part of the positions, and of the norms of queries and keys, which see a part of the heads. Here by hooks, before ZeRO takes
    the gradients of a micro-batch away.
    """
    if topology.tensor.size == 1:
        return
    config: Any = chunk.config

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.float() if gradient.element_size() < 4 else gradient.clone()
        dist.all_reduce(total, group=topology.tensor.group)
        return total.to(gradient.dtype)

    for name, parameter in chunk.named_parameters():
        cut_by_position = config.sequence_parallel and getattr(parameter, "sequence_parallel", False)
        cut_by_head = config.qk_layernorm and ("q_layernorm" in name or "k_layernorm" in name)
        if cut_by_position or cut_by_head:
            parameter.register_hook(summed)


def mark_copies(chunk: LanguageModel, topology: Topology) -> None:
    """Count a tied embedding of two pipeline stages once in the norm of the gradient: on the first."""
    for parameter in chunk.parameters():
        parameter.ds_pipe_replicated = False  # pyright: ignore[reportAttributeAccessIssue]
    if _is_copied(chunk, topology) and topology.is_last_stage:
        chunk.shared_embedding_or_output_weight().ds_pipe_replicated = True  # pyright: ignore[reportAttributeAccessIssue]


def sum_tied(chunk: LanguageModel, topology: Topology) -> None:
    """Sum the gradients of the two copies of a tied embedding. Collective over the first and the last pipeline stage."""
    if not _is_copied(chunk, topology) or not (topology.is_first_stage or topology.is_last_stage):
        return
    weight: Any = chunk.shared_embedding_or_output_weight()
    # where micro-batches are added up: BF16_Optimizer's fp32 buffer, the other optimizers' fp32 sum of a bf16 run, the parameter
    for name in ("_hp_grad", "grad_accum", "grad"):
        if (gradient := getattr(weight, name, None)) is not None:
            dist.all_reduce(gradient, group=parallel_state.get_embedding_group())
            return
    raise AssertionError("the embedding has no gradient")


def _is_copied(chunk: LanguageModel, topology: Topology) -> bool:
    return bool(chunk.share_embeddings_and_output_weights) and topology.pipeline.size > 1
