"""Bytes of weights, gradients and optimizer on one rank under DeepSpeed's ZeRO (no torch).

Rajbhandari et al. 2020, arXiv 1910.02054, section 5, with Ψ parameters on a model-parallel rank, e bytes an element of the weights,
D = data · context ranks, fp32 gradients, and 12 bytes of optimizer state an element (DeepSpeed keeps a master copy in fp32 runs too):

    stage 1:  e Ψ + 4 Ψ + 12 Ψ / D      stage 2:  e Ψ + (4 + 12) Ψ / D      stage 3:  (e + 4 + 12) Ψ / D

Beside these: padding; in stages 2 and 3 the buffer that gradients are exchanged in; in stage 3 the weights that are whole at a time, at
most `live_elements`. What is offloaded is counted as the host's.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_codemix.config import RunConfig
from megatron_codemix.config.deepspeed import swap_groups
from megatron_codemix.train.states import FP32, States, precision_bytes, stage_parameters

_OPTIMIZER = 3 * FP32
"""Master weight and two moments."""
_SWAP_BUFFERS, _WEIGHT_BUFFERS = 4, 5
"""As engine/zero/settings.py has DeepSpeed take them."""


@dataclass(frozen=True)
class _Sizes:
    """Elements on a rank."""

    whole: int
    """Of its parameters."""
    padded: int
    """Laid end to end, matrices and vectors apart, each padded so that DeepSpeed can cut them (stages 1 and 2)."""
    part: int
    """Its part of each parameter, rounded up (stage 3)."""
    persistent: int
    """Of parameters that are not split (stage 3)."""


def zero_states(config: RunConfig, rows: int, *, pipeline_rank: int = 0, data_ranks: int = 1) -> States:
    """Device memory of a rank of pipeline position `pipeline_rank` when all gradients of a step have come. rows: padded vocabulary."""
    wanted, ranks = config.deepspeed, data_ranks * config.parallel.context
    sizes, element = _sizes(config, rows, pipeline_rank, ranks), precision_bytes(config.precision)
    offloaded = wanted.offload_optimizer != "none"
    buffers = min(wanted.bucket_elements, sizes.whole) * FP32 * (2 if config.parallel.overlap_grad_reduce else 1)
    if wanted.zero_stage == 3:
        weights = 0 if wanted.offload_parameters != "none" else sizes.part
        weights += sizes.persistent + min(wanted.live_elements, sizes.whole - sizes.persistent)
        gradients, split = buffers, sizes.part
    else:
        weights, split = sizes.padded, sizes.padded // ranks
        # in bf16 a flat fp32 buffer, else the gradients of the parameters themselves
        flat = sizes.padded if element < FP32 and not offloaded else sizes.whole
        gradients = flat * FP32 if wanted.zero_stage == 1 else buffers
    if wanted.zero_stage > 1 and not offloaded:
        gradients += split * FP32
    return States(sizes.whole, weights * element, gradients, 0 if offloaded else split * _OPTIMIZER)


def host_bytes(config: RunConfig, rows: int, *, pipeline_rank: int = 0, data_ranks: int = 1) -> int:
    """Host memory of a rank for what is offloaded: optimizer state, its gradients, and updated weights on their way; weights.

    Of what is on nvme: gradients, and buffers for a group of parameters that is swapped, or for single weights.
    """
    wanted, ranks = config.deepspeed, data_ranks * config.parallel.context
    sizes, element = _sizes(config, rows, pipeline_rank, ranks), precision_bytes(config.precision)
    split = sizes.part if wanted.zero_stage == 3 else sizes.padded // ranks
    held = 0
    if wanted.offload_optimizer == "cpu":
        held += split * (_OPTIMIZER + FP32 + (0 if wanted.zero_stage == 3 else element))
    if wanted.offload_parameters == "cpu":
        held += split * element
    if "nvme" in (wanted.offload_optimizer, wanted.offload_parameters):
        parts = [[-(-size // ranks) for size in group] for group in _parameters(config, rows, pipeline_rank)]
        most = max(size for group in parts for size in swap_groups(group, wanted.swap_elements))
        if wanted.offload_optimizer == "nvme":
            held += split * FP32 + _SWAP_BUFFERS * FP32 * most
        if wanted.offload_parameters == "nvme":
            held += _WEIGHT_BUFFERS * element * max(map(max, parts)) + element * ranks * most
    return held


def nvme_bytes(config: RunConfig, rows: int, *, pipeline_rank: int = 0, data_ranks: int = 1) -> int:
    """Files of a rank on nvme at most: weight, gradient and moments, a checkpoint's copy of these without the gradient; weights."""
    wanted, ranks = config.deepspeed, data_ranks * config.parallel.context
    part = _sizes(config, rows, pipeline_rank, ranks).part
    files = part * (2 * _OPTIMIZER + FP32) if wanted.offload_optimizer == "nvme" else 0
    return files + (part * precision_bytes(config.precision) if wanted.offload_parameters == "nvme" else 0)


def _sizes(config: RunConfig, rows: int, pipeline_rank: int, ranks: int) -> _Sizes:
    matrices, vectors = _parameters(config, rows, pipeline_rank)
    everything = matrices + vectors
    return _Sizes(
        whole=sum(everything),
        padded=sum(-(-sum(group) // (2 * ranks)) * 2 * ranks for group in (matrices, vectors)),
        part=sum(-(-size // ranks) for size in everything),
        persistent=sum(size for size in everything if size <= config.deepspeed.persistent_elements),
    )


def _parameters(config: RunConfig, rows: int, pipeline_rank: int) -> tuple[list[int], list[int]]:
    """Elements of the rank's matrices and of its vectors (norms, biases), which AdamW decays and does not."""
    model = config.model
    sizes = [parameter.elements for parameter in stage_parameters(model, config.parallel, rows, pipeline_rank)]
    # no matrix is as small as a vector may be: the widest are the fused projection's and feed-forward's biases
    widest = max(model.hidden_size, model.qkv_width, model.ffn_input_width)
    return [size for size in sizes if size > widest], [size for size in sizes if size <= widest]
