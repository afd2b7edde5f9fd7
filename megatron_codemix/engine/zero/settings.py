"""A run's config in DeepSpeed's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_codemix.config import RunConfig

SWAP_BUFFERS = 4
"""Weight, gradient and two moments of a group that is swapped, each page-locked."""
WEIGHT_BUFFERS = 5
"""Weights on their way from nvme at a time: those of a module, and of the next ones."""


def deepspeed_settings(config: RunConfig, swap_folder: Path | None = None, largest_part: int = 0) -> dict[str, Any]:
    """What `deepspeed.initialize` takes as `config`.

    swap_folder: of this rank, where something goes to nvme; largest_part: elements of the largest part of a parameter on a rank.

    Gradients are accumulated and exchanged in fp32 whatever the model's precision, as the other engine does. Numbers of
    micro-batches are ours to count ("unmanaged" accumulation): every call of DeepSpeed's `step` is a step.
    """
    bf16 = config.precision == "bf16"
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW, which it knows, with a gate before it
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own AdamW for offloading must be compiled
        "zero_optimization": _zero(config, swap_folder, largest_part),
        "steps_per_print": None,
    }
    if bf16:
        # immediate: each micro-batch's gradients are added up in fp32 as they come
        settings |= {"bf16": {"enabled": True, "immediate_grad_update": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings


def _zero(config: RunConfig, swap_folder: Path | None, largest_part: int) -> dict[str, Any]:
    wanted = config.deepspeed
    zero: dict[str, Any] = {
        "stage": wanted.zero_stage,
        "overlap_comm": config.parallel.overlap_grad_reduce,
        # stage 1 takes gradients from the parameters when the step comes, whoever ran the backward passes
        "contiguous_gradients": wanted.zero_stage > 1,
        "reduce_bucket_size": wanted.bucket_elements,
        "allgather_bucket_size": wanted.bucket_elements,
    }
    if wanted.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": wanted.persistent_elements,
            "stage3_prefetch_bucket_size": wanted.bucket_elements,
            "stage3_max_live_parameters": wanted.live_elements,
            "stage3_max_reuse_distance": wanted.live_elements,
        }
    if "nvme" in (wanted.offload_optimizer, wanted.offload_parameters):
        zero["sub_group_size"] = wanted.swap_elements
    for what, where in (("optimizer", wanted.offload_optimizer), ("param", wanted.offload_parameters)):
        if where != "none":
            zero[f"offload_{what}"] = {"device": where, "pin_memory": torch.cuda.is_available()}
        if where == "nvme":
            zero[f"offload_{what}"] |= {"nvme_path": str(swap_folder)} | (
                {"buffer_count": SWAP_BUFFERS}
                if what == "optimizer"
                # 0 elements: none of the weights that are large enough for files stays in host memory
                else {"buffer_count": WEIGHT_BUFFERS, "buffer_size": largest_part, "max_in_cpu": 0}
            )
    return zero
