"""What of a config was changed on purpose while a run lay still (`codemix train --accept-changes`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, disagreement
from megatron_codemix.train.inputs import Inputs

CHANGEABLE = {"stages", "optimizer"}
"""Sections that a run may change on its way, if it is told to."""
_ABSENT = object()


def changes(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """`a.b: old → new` for each changeable field that is not what it was, in the order of the config; then sources that came with it."""
    old, new = (dict(_flat(config.model_dump(mode="json", include=CHANGEABLE))) for config in (before, now))
    keys = [*new, *(key for key in old if key not in new)]
    pairs = [(key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in keys]
    changed = [f"{key}: {_words(mine)} → {_words(theirs)}" for key, mine, theirs in pairs if mine != theirs]
    read = {name for stage in now.stages for name in stage.mixture}
    came = [name for name in now.sources if name not in before.sources and name in read]
    return (*changed, *(f"sources.{name}: (absent) → {now.sources[name].path}" for name in came))


def _words(value: Any) -> str:
    return "(absent)" if value is _ABSENT else "null" if value is None else str(value)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path → value of everything that is not a section or a list."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield path, value
        return
    for key, entry in inside:
        yield from _flat(entry, f"{path}.{key}" if path else str(key))


def require_same_past(config: RunConfig, inputs: Inputs, checkpoint: Checkpoint) -> None:
    """Refuse changes that would alter what the steps before a checkpoint have read. Raises UserError with the first such thing."""
    step, output = checkpoint.step, config.output
    if inputs.plan.fingerprint == checkpoint.record.plan:
        return
    before = planned_before(inputs, checkpoint)
    if before is None:
        raise UserError(
            f"{output}: the shards are not those that step {step:,} was trained on, and --accept-changes is for stages and optimizer; "
            "restore them, or choose another 'output' for a new run"
        )
    words = disagreement(before, inputs.plan, 0, step)
    if words:
        raise UserError(
            f"{output}: the stages as they are now would alter what the steps before {step:,} have read: {words}; "
            "change only what comes after them, or branch from the run"
        )


def planned_before(inputs: Inputs, checkpoint: Checkpoint) -> Plan | None:
    """The plan that a checkpoint followed, compiled again over the shards at hand; None where these are others.

    Raises UserError where they lack one of its sources.
    """
    plan = inputs.plan_of(checkpoint.config())
    return plan if plan.fingerprint == checkpoint.record.plan else None
