"""Changes to megatron-core 0.16.1 itself, on any device; each applies only where what it cures can occur."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from megatron_codemix.compat import symptoms
from megatron_codemix.compat.patch import Patch

_RANDOM = "megatron.core.tensor_parallel.random"


def _no_transformer_engine() -> bool:
    return not importlib.import_module(_RANDOM).HAVE_TE


def _fp8_is_a_flag() -> None:
    checkpoint = importlib.import_module(_RANDOM).CheckpointWithoutOutput
    original = checkpoint.__init__

    @functools.wraps(original)
    def init(self: Any, fp8: Any = False) -> None:
        original(self, fp8)
        self.fp8 = bool(fp8)

    checkpoint.__init__ = init


def _fused_adam_is_there() -> bool:
    return importlib.import_module("megatron.core.optimizer").Adam is not torch.optim.AdamW


def _torch_adamw() -> None:
    optimizers: Any = importlib.import_module("megatron.core.optimizer")
    optimizers.USING_PYTORCH_OPTIMIZER = True


FIXES = (
    Patch(
        name="fix.fp8_is_a_flag",
        cures="selective recompute of norms and activations calls Transformer Engine's fp8 manager although fp8 is off",
        shows="FP8GlobalStateManager",
        applies=_no_transformer_engine,
        symptom=symptoms.fp8_without_te,
        install=_fp8_is_a_flag,
    ),
    Patch(
        name="fix.torch_adamw",
        cures="the optimizer is whichever is installed, and those of Transformer Engine and Apex keep other state than torch's",
        shows="FusedAdam",
        applies=_fused_adam_is_there,
        symptom=symptoms.fused_adam,
        install=_torch_adamw,
    ),
)
