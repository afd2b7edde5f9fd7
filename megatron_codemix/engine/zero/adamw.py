"""torch's AdamW behind a gate: whether an update is made is asked when its gradients, and their norm, are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.config import RunConfig
from megatron_codemix.model.width import Multipliers, multipliers


class GatedAdamW(torch.optim.AdamW):
    """AdamW with decoupled decay of matrices alone. DeepSpeed puts its own flat fp32 parameters into the groups.

    DeepSpeed calls `step` once or several times for an optimizer step (per group of parameters), after it has computed and
    clipped the global norm of all gradients.
    """

    def __init__(self, config: RunConfig, named: Iterable[tuple[str, Tensor]]) -> None:
        """named: the model's parameters, as this rank holds them."""
        settings = config.optimizer
        groups: dict[Multipliers, dict[str, Any]] = {}
        for name, parameter in named:
            by_width = multipliers(config, name, parameter.ndim)
            decay = settings.weight_decay * by_width.weight_decay if parameter.ndim > 1 else 0.0
            key = Multipliers(learning_rate=by_width.learning_rate, weight_decay=decay)
            group = groups.setdefault(key, {"params": [], "weight_decay": decay, "lr_mult": by_width.learning_rate})
            group["params"].append(parameter)
        super().__init__(
            list(groups.values()),
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,  # one pass over weights and moments; torch has it for the host as well, where offloaded state is
            foreach=False,
        )
        self._ask: Callable[[], bool] | None = None
        self._verdict: bool | None = None

    def arm(self, ask: Callable[[], bool]) -> None:
        """To be called before DeepSpeed's step: `ask` decides, once, when the gradients' norm is known."""
        self._ask, self._verdict = ask, None

    @property
    def updated(self) -> bool:
        """Whether the weights were changed since `arm`."""
        return bool(self._verdict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """AdamW's step of the present groups, or nothing."""
        assert closure is None and self._ask is not None
        if self._verdict is None:
            self._verdict = self._ask()
        if self._verdict:
            super().step()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the next step; under width transfer each group's own multiple of it."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["lr_mult"]

    def create_state(self, flat: Iterable[Tensor]) -> None:
        """Moments of zero from the beginning, so that a checkpoint of step 0 has the same entries as any other."""
        for parameter in flat:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }

    @torch.no_grad()
    def count_on(self) -> None:
        """The count of updates goes on as if there had been one (docs/decisions/072)."""
        for held in self.state.values():
            held["step"] += 1
