"""A run that continues another one's checkpoint with a schedule of its own."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_codemix.config.section import Count, FilePath, Section, is_count, whole
from megatron_codemix.config.stage import Stage


class TrunkPart(Section):
    """Stages that the weights had been through when a run was branched off."""

    stages: list[Stage] = Field(min_length=1)
    """As that run declared them, whole."""
    until: Count
    """Step of the whole history at which they were left."""
    plan: str
    """Fingerprint of that run's plan."""


class Branch(Section):
    """Where a branch leaves its trunk: weights, moments, cursors, ledger and lineage go on from there."""

    run: FilePath
    """Folder of the trunk's run."""
    step: Count
    """Step of the trunk's checkpoint; the trunk keeps those in its checkpoint.keep_steps."""
    history: list[TrunkPart] | None = None
    """The trunk's stages up to that step, the oldest run first. Filled in when the branch begins: leave it out."""


def branch_problems(raw: dict[str, Any]) -> list[str]:
    """What a branch does not go together with; raw: the whole run."""
    branch, problems = raw.get("branch"), []
    if not isinstance(branch, dict):
        return problems
    if raw.get("initial_weights") is not None:
        problems.append("initial_weights: a branch begins with its trunk's weights; leave out one of the two")
    history = branch.get("history")
    parts = [part for part in history if isinstance(part, dict)] if isinstance(history, list) else []
    sources = raw.get("sources") if isinstance(raw.get("sources"), dict) else None
    read = {
        name: None
        for part in parts
        for stage in (part.get("stages") if isinstance(part.get("stages"), list) else []) or []
        if isinstance(stage, dict) and isinstance(stage.get("mixture"), dict)
        for name in stage["mixture"]
    }
    problems += [
        f"sources: the trunk has a source '{name}', and its order and ledger go on; declare it as the trunk does, with the same shards"
        for name in read
        if sources is not None and name not in sources
    ]
    ends, step = [end for part in parts if is_count(end := whole(part.get("until")))], whole(branch.get("step"))
    if parts and len(ends) == len(parts) and (ends != sorted(set(ends)) or ends[-1] != step):
        problems.append(f"branch.history: its parts end at {ends}, the branch at step {step}; leave history out")
    return problems
