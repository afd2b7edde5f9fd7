"""Fixes of megatron-core 0.16.1's own bugs, on any device; each applies only where its bug can occur."""

from __future__ import annotations

import functools
import importlib
from typing import Any

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


FIXES = (
    Patch(
        name="fix.fp8_is_a_flag",
        cures="selective recompute of norms and activations calls Transformer Engine's fp8 manager although fp8 is off",
        shows="FP8GlobalStateManager",
        applies=_no_transformer_engine,
        symptom=symptoms.fp8_without_te,
        install=_fp8_is_a_flag,
    ),
)
