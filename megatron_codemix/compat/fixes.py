"""Fixes of megatron-core 0.16.1's own bugs, on any device; each applies only where its bug can occur."""

from __future__ import annotations

import functools
import importlib
import queue
from typing import Any

import torch

from megatron_codemix.compat import symptoms
from megatron_codemix.compat.patch import Patch

_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer"
_RANDOM = "megatron.core.tensor_parallel.random"
_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"


def _torch_adamw() -> bool:
    """Whether the distributed optimizer falls back to torch.optim.AdamW (neither Apex nor Transformer Engine)."""
    return not importlib.import_module(_OPTIMIZER).HAVE_APEX_OR_TE


def _always() -> bool:
    return True


def _no_transformer_engine() -> bool:
    return not importlib.import_module(_RANDOM).HAVE_TE


def _adamw_state(param: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What torch.optim.AdamW creates at its first step."""
    on_device = group.get("fused") or group.get("capturable")
    step = torch.zeros((), dtype=torch.float32, device=param.device if on_device else None)
    return {"step": step, "exp_avg": torch.zeros_like(param.data), "exp_avg_sq": torch.zeros_like(param.data)}


def _prime_state() -> None:
    optimizer = importlib.import_module(_OPTIMIZER).DistributedOptimizer
    original = optimizer.state_dict

    @functools.wraps(original)
    def state_dict(self: Any) -> dict[str, Any]:
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                if not self.optimizer.state.get(param):
                    self.optimizer.state[param] = _adamw_state(param, group)
        return original(self)

    optimizer.state_dict = state_dict


def _own_step() -> None:
    optimizer = importlib.import_module(_OPTIMIZER).DistributedOptimizer
    original = optimizer.load_state_dict

    @functools.wraps(original)
    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    optimizer.load_state_dict = load_state_dict


def _skip_step() -> None:
    optimizer = importlib.import_module(_OPTIMIZER).DistributedOptimizer
    original = optimizer._set_main_param_and_optimizer_states

    @functools.wraps(original)
    def set_states(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        # The step travels in the parameter groups: what is stored per parameter has no entry for it.
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(self, model_param, {"step": state["step"], **tensors} if "step" in state else tensors)

    optimizer._set_main_param_and_optimizer_states = set_states


def _load_without_grad() -> None:
    optimizer = importlib.import_module(_OPTIMIZER).DistributedOptimizer
    optimizer._set_main_param_and_optimizer_states = torch.no_grad()(optimizer._set_main_param_and_optimizer_states)


def _fp8_is_a_flag() -> None:
    checkpoint = importlib.import_module(_RANDOM).CheckpointWithoutOutput
    original = checkpoint.__init__

    @functools.wraps(original)
    def init(self: Any, fp8: Any = False) -> None:
        original(self, fp8)
        self.fp8 = bool(fp8)

    checkpoint.__init__ = init


def _write_in_process() -> None:
    # For synchronous saves, the only ones here. One thread per rank: ranks write in parallel already.
    module: Any = importlib.import_module(_WRITER)

    def write(transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: queue.SimpleQueue[Any]) -> None:
        written: dict[int, Any] = {}
        for number, bucket in enumerate(buckets):
            outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
            pending: queue.Queue[int] = queue.Queue()
            pending.put(number)
            module.FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, outcome, pending, use_fsync=True, use_msc=use_msc)
            written[number] = outcome.get()[1]
            if isinstance(written[number], Exception):
                results.put(written[number])
                return
        results.put(written)

    module.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(write)
    module._get_write_results_queue = queue.SimpleQueue  # a new one for each save


FIXES = (
    Patch(
        name="fix.prime_adamw_state",
        cures="a distributed optimizer that has not stepped cannot be loaded: state_dict asserts on the empty state",
        shows="len(steps)",
        applies=_torch_adamw,
        symptom=symptoms.empty_state,
        install=_prime_state,
    ),
    Patch(
        name="fix.own_step_per_parameter",
        cures="after a load every parameter shares one step tensor, which then advances once per parameter: silent divergence",
        shows="but the step counts are",
        applies=_torch_adamw,
        symptom=symptoms.shared_step,
        install=_own_step,
    ),
    Patch(
        name="fix.step_is_not_a_parameter_state",
        cures="loading the distributed optimizer fails on the key 'step'",
        shows="'step'",
        applies=_torch_adamw,
        symptom=symptoms.step_in_state,
        install=_skip_step,
    ),
    Patch(
        name="fix.load_without_grad",
        cures="loading the distributed optimizer of an fp32 model writes into a leaf that requires grad",
        shows="leaf Variable that requires grad",
        applies=_always,
        symptom=symptoms.load_with_grad,
        install=_load_without_grad,
    ),
    Patch(
        name="fix.fp8_is_a_flag",
        cures="selective recompute of norms and activations calls Transformer Engine's fp8 manager although fp8 is off",
        shows="FP8GlobalStateManager",
        applies=_no_transformer_engine,
        symptom=symptoms.fp8_without_te,
        install=_fp8_is_a_flag,
    ),
    Patch(
        name="fix.write_in_process",
        cures="the first save takes seconds to start a manager process, which outlives a killed trainer, and forks to write: "
        "a writer that is killed leaves the save waiting for ever",
        shows="processes were started",
        applies=_always,
        symptom=symptoms.save_starts_processes,
        install=_write_in_process,
    ),
)
