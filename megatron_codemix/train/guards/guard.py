"""Whether an update is made: asked by the engine before the weights change, on every rank, with figures that are the same on all.

So every rank comes to the same answer by itself. What the answer depends on (the figures of the steps before, how much was left
out already) lies in each checkpoint, so a run that is continued answers as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from megatron_codemix.config import GuardsConfig
from megatron_codemix.engine import Accept, StepResult
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan
from megatron_codemix.train.guards.history import History, Usual
from megatron_codemix.train.guards.skips import PlannedSkips

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """What is to be done with an update."""

    action: Literal["go on", "skip", "rewind", "stop"]
    why: str = ""
    """What was seen, in words; of "go on": a spike that is only logged, a batch without targets, or nothing."""


GO_ON = Verdict("go on")


class Guard:
    """Judges the steps of a run, in order."""

    def __init__(self, settings: GuardsConfig, plan: Plan, planned: PlannedSkips) -> None:
        """planned: what rewinds of this run have decided to leave out."""
        self._settings, self._plan, self.planned = settings, plan, planned
        self._losses, self._norms = History(settings.spike.window), History(settings.spike.window)
        self._stage = -1
        self._skips = 0
        self._had_targets = True
        self.verdict = GO_ON
        """Of the step judged last."""

    def at(self, step: int) -> Accept:
        """The judge of step `step` (0-based), for `Engine.train_step`."""
        return partial(self._accept, step)

    def leaves_out(self, step: int) -> str | None:
        """Why a step is left out by an earlier rewind; None where it is not."""
        return self.planned.why(step)

    @property
    def usual_norm(self) -> Usual | None:
        """What gradient norms have lately been in this stage, the step judged last among them."""
        return self._norms.usual

    def as_json(self) -> dict[str, Any]:
        """guards.json of a checkpoint."""
        figures = {"losses": self._losses.values, "grad_norms": self._norms.values}
        return {"format_version": _FORMAT_VERSION, "stage": self._stage, "skips": self._skips, **figures}

    def load(self, value: Any, where: str = "guards.json", trunk: bool = False) -> None:
        """Go on as the guard that gave `value` by `as_json`; None (a checkpoint without one): as a new one.

        trunk: it was another run's, which this one leaves: what that has left out is not counted. Raises UserError naming `where` for
        anything else.
        """
        value = {"format_version": _FORMAT_VERSION, "stage": -1, "skips": 0, "losses": [], "grad_norms": []} if value is None else value
        if not isinstance(value, Mapping) or value.get("format_version") != _FORMAT_VERSION:
            raise UserError(f"{where}: not of format_version {_FORMAT_VERSION}; it was altered, use another checkpoint")
        try:
            window = self._settings.spike.window
            self._losses, self._norms = History(window, value["losses"]), History(window, value["grad_norms"])
            self._stage, self._skips = int(value["stage"]), 0 if trunk else int(value["skips"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: is malformed ({error}); it was altered, use another checkpoint") from None
        self.verdict = GO_ON

    def forget(self) -> None:
        """What was usual is so no longer: the stage, or how it is trained, is another."""
        self._losses.clear()
        self._norms.clear()

    def _accept(self, step: int, result: StepResult) -> bool:
        stage = self._plan.stage_at(step).index
        if stage != self._stage:  # another mixture has another loss
            self.forget()
            self._stage = stage
        had_targets, self._had_targets = self._had_targets, result.target_tokens > 0
        if not self._had_targets and math.isfinite(result.loss) and math.isfinite(result.grad_norm):  # 0 / 0 is no measure of anything
            said = f"step {step + 1}: no target in the whole batch, so nothing is learnt; the stage's objective leaves everything out"
            self.verdict = Verdict("go on", said) if had_targets else GO_ON
            return True
        self.verdict = self._judge(step, result)
        # Spikes are remembered too: a median is not moved by a few, and where the loss has risen for good they become usual.
        self._losses.add(result.loss)
        self._norms.add(result.grad_norm)
        self._skips += self.verdict.action == "skip"
        return self.verdict.action == "go on"

    def _judge(self, step: int, result: StepResult) -> Verdict:
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            return self._bounded(self._settings.non_finite, f"step {step + 1}: loss {result.loss}, gradient norm {result.grad_norm}")
        spike = self._spike(result)
        if spike and self._settings.spike.action != "log":
            return self._bounded(self._settings.spike.action, f"step {step + 1}: {spike}")
        return Verdict("go on", spike) if spike else GO_ON

    def _spike(self, result: StepResult) -> str:
        """The spike in words; empty where there is none."""
        settings = self._settings.spike
        watched = [("loss", self._losses, result.loss), ("gradient norm", self._norms, result.grad_norm)]
        if settings.of != "either":
            watched = watched[:1] if settings.of == "loss" else watched[1:]
        for name, history, value in watched:
            usual = history.usual
            if usual and history.judges and (excess := usual.excess(value)) > settings.sigmas:
                return f"{name} {value:.4g}, {excess:.1f} spreads above the median {usual.median:.4g} of {len(history.values)} steps"
        return ""

    def _bounded(self, action: Literal["stop", "skip", "rewind"], why: str) -> Verdict:
        made, most = (self._skips, self._settings.max_skips) if action == "skip" else (len(self.planned), self._settings.max_rewinds)
        if action != "stop" and made >= most:
            return Verdict("stop", f"{why}; guards.max_{action}s {most} is used up")
        return Verdict(action, why)
