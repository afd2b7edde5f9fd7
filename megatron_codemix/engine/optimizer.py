"""megatron-core's optimizer for a run: AdamW, no decay on norms, the learning rate set from outside at each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from megatron_codemix.config import RunConfig
from megatron_codemix.model.width import Multipliers, multipliers


def build_optimizer(config: RunConfig, chunks: list[Any]) -> MegatronOptimizer:
    """AdamW over the parameters of the DDP-wrapped model chunks; in bf16 runs with fp32 master weights.

    With the distributed optimizer a rank has them for its range of each parameter alone (ZeRO stage 1, Rajbhandari
    et al. 2020, arXiv 1910.02054). Moments start at zero and exist from the beginning, so that a checkpoint of
    step 0 has the same entries as any other.
    """
    settings, bf16 = config.optimizer, config.precision == "bf16"
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_grad_norm,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=config.parallel.distributed_optimizer,
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        chunks,
        _overrides(config, chunks),
    )
    apply_settings(config, optimizer)
    _create_state(optimizer)
    return optimizer


def _overrides(config: RunConfig, chunks: list[Any]) -> dict[ParamKey, Any] | None:
    """Parameter groups beyond megatron-core's own (no decay on what has one dimension): None, or one for each of µP's multipliers."""
    found = {
        multiplied
        for chunk in chunks
        for name, parameter in chunk.named_parameters()
        if (multiplied := multipliers(config, name, parameter.ndim)) != Multipliers()
    }
    if not found:
        return None
    overrides: dict[ParamKey, Any] = dict(get_standard_config_overrides(MegatronOptimizerConfig()))
    for multiplied in sorted(found, key=lambda each: (each.learning_rate, each.init_std)):

        def matches(parameter: torch.nn.Parameter, name: str, multiplied: Multipliers = multiplied) -> bool:
            return multipliers(config, name, parameter.ndim) == multiplied

        key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=f"width {multiplied}", fn=matches))
        overrides[key] = {"lr_mult": multiplied.learning_rate, "wd_mult": multiplied.weight_decay}
    return overrides


def apply_settings(config: RunConfig, optimizer: MegatronOptimizer) -> None:
    """Write the run's hyperparameters into the parameter groups; a checkpoint holds none of them.

    megatron-core leaves decay per group to its scheduler, which we do not use: its optimizer would decay norms as well.
    """
    settings = config.optimizer
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        group["betas"] = (settings.beta1, settings.beta2)
        group["eps"] = settings.epsilon
        group["fused"], group["foreach"] = True, False  # one pass over weights and moments


def set_learning_rate(optimizer: MegatronOptimizer, learning_rate: float) -> None:
    """Learning rate of the next step; under width transfer each group's own multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Make the reduced gradients ready for `update`, and give their L2 norm: the first half of megatron-core's `step`.

    Collective over the ranks that share the model, with the distributed optimizer over all.
    """
    found_inf = optimizer.prepare_grads()
    assert not found_inf, "only a loss scaler looks for infinities, and there is none"
    return float(optimizer.get_grad_norm())


@torch.no_grad()
def update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the gradients, whose norm is given, and change the weights: the second half of megatron-core's `step`. Collective."""
    for single in _parts(optimizer):
        parameters = single.get_parameters()
        if parameters and single.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=single.config.clip_grad, total_norm=grad_norm)
    updated = optimizer.step_with_ready_grads()
    assert updated, "only a loss scaler skips a step, and there is none"


@torch.no_grad()
def count_on(optimizer: MegatronOptimizer) -> None:
    """AdamW's count of updates goes on as if there had been one, so that it stays the step of the run (docs/decisions/072)."""
    for single in _parts(optimizer):
        for state in single.optimizer.state.values():
            state["step"] += 1


def _parts(optimizer: MegatronOptimizer) -> Iterator[Any]:
    """The optimizers behind it that have parameters on this rank."""
    for single in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not single.is_stub_optimizer:
            yield single


def _create_state(optimizer: MegatronOptimizer) -> None:
    for chained in _parts(optimizer):
        inner = chained.optimizer
        assert isinstance(inner, torch.optim.AdamW), f"{type(inner)}: only torch's AdamW keeps a count of steps for each parameter"
        for group in inner.param_groups:
            for parameter in group["params"]:
                inner.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter.detach()),
                    "exp_avg_sq": torch.zeros_like(parameter.detach()),
                }
