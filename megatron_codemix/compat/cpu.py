"""megatron-core 0.16.1 on a machine without a GPU (gloo): the same code path, with `cuda` meaning the CPU.

Only what its training path really touches is patched; each entry of `CPU_PATCHES` has a test that shows what
happens without it. None of them is installed where torch sees a GPU.

torch itself is changed only where a call would have raised on such a machine. What other libraries use as well
(`torch.zeros`, `torch.tensor`, seeding) is replaced inside megatron-core's modules alone: wrapping the global
functions breaks `with torch.device("meta")`, and transformers then loads models with uninitialised buffers.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from megatron_codemix.compat import symptoms
from megatron_codemix.compat.patch import Patch

_CPU = torch.device("cpu")
_FACTORIES_WITH_CUDA = (
    "utils",
    "optimizer.optimizer",
    "optimizer.clip_grads",
    "pipeline_parallel.schedules",
)
"""Modules below megatron.core that call torch.tensor or torch.zeros with device="cuda"."""


class _Overlay(ModuleType):
    """A module as another sees it: some names replaced, everything else looked up in the real one when asked for."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["_overlaid"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_overlaid"], name)


def _no_gpu() -> bool:
    return not torch.cuda.is_available()


def _current_device() -> None:
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment]


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return on_cpu


def _factories() -> None:
    overlay = _Overlay(torch, tensor=_on_cpu(torch.tensor), zeros=_on_cpu(torch.zeros))
    for name in _FACTORIES_WITH_CUDA:
        module: Any = importlib.import_module(f"megatron.core.{name}")
        module.torch = overlay


def _pinned_memory() -> None:
    @functools.wraps(torch.tensor)
    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(*args, **kwargs)

    rotary: Any = importlib.import_module("megatron.core.models.common.embeddings.rope_utils")
    rotary.torch = _Overlay(torch, tensor=unpinned)


def _tensor_cuda() -> None:
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]


def _tensor_type() -> None:
    original = torch.Tensor.type

    @functools.wraps(original)
    def tensor_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if args or kwargs or not isinstance(answer, str):
            return answer
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return answer.replace("torch.", "torch.cuda.", 1) if caller.startswith("megatron.core.optimizer.") else answer

    torch.Tensor.type = tensor_type  # type: ignore[method-assign, assignment]


def _synchronize() -> None:
    torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]


def _random_state() -> None:
    # The CPU generator takes the place of the GPU's, for the tracker and for recomputation.
    tracker: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    cuda = _Overlay(torch.cuda, get_rng_state=torch.get_rng_state, manual_seed=torch.default_generator.manual_seed)
    tracker.torch = _Overlay(torch, cuda=cuda)
    tracker._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    tracker._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    # A fork of the tracker is meant to leave the CPU generator alone, and warns when it did not; here it never does.
    logging.getLogger(tracker.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


CPU_PATCHES = (
    Patch(
        name="cpu.current_device",
        cures="buffers of collectives and models are asked for on the current GPU",
        shows="Torch not compiled with CUDA enabled",
        applies=_no_gpu,
        symptom=symptoms.current_device,
        install=_current_device,
    ),
    Patch(
        name="cpu.factories",
        cures="the schedule and the optimizer create scalars with device='cuda'",
        shows="Torch not compiled with CUDA enabled",
        applies=_no_gpu,
        symptom=symptoms.factories,
        install=_factories,
    ),
    Patch(
        name="cpu.pinned_memory",
        cures="under context parallelism the rotary embedding pins the numbers of the rank's chunks",
        shows="pin_memory=True requires",
        applies=_no_gpu,
        symptom=symptoms.pinned_memory,
        install=_pinned_memory,
    ),
    Patch(
        name="cpu.tensor_cuda",
        cures="tied embeddings of the last pipeline stage are moved to the GPU",
        shows="Torch not compiled with CUDA enabled",
        applies=_no_gpu,
        symptom=symptoms.tensor_cuda,
        install=_tensor_cuda,
    ),
    Patch(
        name="cpu.tensor_type",
        cures="the optimizers refuse parameters and gradients whose type() is not torch.cuda.…",
        shows="torch.cuda.FloatTensor",
        applies=_no_gpu,
        symptom=symptoms.tensor_type,
        install=_tensor_type,
    ),
    Patch(
        name="cpu.synchronize",
        cures="pipeline communication waits for the GPU",
        shows="Torch not compiled with CUDA enabled",
        applies=_no_gpu,
        symptom=symptoms.synchronize,
        install=_synchronize,
    ),
    Patch(
        name="cpu.random_state",
        cures="the tracker of random states reads and sets the GPU generator",
        shows="Torch not compiled with CUDA enabled",
        applies=_no_gpu,
        symptom=symptoms.random_state,
        install=_random_state,
    ),
)
