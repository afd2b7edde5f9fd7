"""deepspeed itself: found, of the proven version, quiet, in need of no compiler, and without memory of an earlier topology."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from typing import Any

import torch

from megatron_codemix.errors import UserError

TESTED_VERSION = "0.19.8"
"""The release that every layout was proven with."""
_REMEDY = f"DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed=={TESTED_VERSION}"


def import_deepspeed() -> Any:
    """The package `deepspeed`, ready for this process's current topology.

    Raises UserError when it is not installed, or is another release than the tested one.
    """
    try:
        version = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"engine: deepspeed is not installed; {_REMEDY}, or set engine to megatron") from None
    if version != TESTED_VERSION:
        raise UserError(f"engine: deepspeed {version} is installed, but only {TESTED_VERSION} is proven here; {_REMEDY}")
    on_gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # a world of one has none, and deepspeed asks for it
    deepspeed = importlib.import_module("deepspeed")
    # its account of every buffer is written at INFO, some of it on every rank; at WARNING, that it does not know our AdamW
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not on_gpu:
        # On CPU it would compile all-reduce through shared memory with g++ before the first collective.
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
    _keep_precision()
    _forget_topology()
    return deepspeed


def _keep_precision() -> None:
    """Have ZeRO-3 keep the precision that it is given: without it, weights of an fp32 run go to nvme in bf16 where the device has no fp16.

    `dtype or torch.float16 if … else torch.bfloat16 if … else torch.float32` asks for the device first.
    """
    module: Any = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
    owner = module.InsertPostInitMethodToModuleSubClasses
    if getattr(owner._set_dtype, "keeps_precision", False):
        return
    original = owner._set_dtype

    def _set_dtype(self: Any, ds_config: Any, dtype: torch.dtype | None) -> None:
        original(self, ds_config, dtype)
        self.dtype = dtype or self.dtype

    _set_dtype.keeps_precision = True
    owner._set_dtype = _set_dtype


def _forget_topology() -> None:
    """Drop process groups of a topology that was left: deepspeed keeps them in its modules for the life of a process."""
    comm: Any = importlib.import_module("deepspeed.comm.comm")
    comm.cdb = None
    groups: Any = importlib.import_module("deepspeed.utils.groups")
    groups.mpu = groups._WORLD_GROUP = None
