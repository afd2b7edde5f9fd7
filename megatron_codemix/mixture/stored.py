"""Plans as run folders keep them: read again, compiled again from their configs, compared sample by sample.

RUN/plan.json and config.yaml are of the plan that the run follows. Where it followed others before (its stages were changed on
purpose, or it is a branch), RUN/plans/FINGERPRINT.json and .yaml keep those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_codemix.config import RunConfig, dump_yaml, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, write_json, write_text
from megatron_codemix.mixture.compile import compile_plan
from megatron_codemix.mixture.plan import FORMAT_VERSION, Plan
from megatron_codemix.mixture.stage_plan import StagePlan
from megatron_codemix.progress import progress

FORMER_PLANS = "plans"
_CHUNK_SAMPLES = 1 << 16


def stored_plan(path: Path) -> dict[str, Any]:
    """What a plan.json holds. Raises UserError for a missing file, and for one of another version."""
    stored = read_json(path, "plan")
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {version!r}, but this codemix reads {FORMAT_VERSION}; use the codemix that wrote it")
    return stored


def recompile(config: RunConfig, stored: Mapping[str, Any], where: str) -> Plan:
    """The plan that the config gives for corpora of the sizes that a stored plan remembers.

    Raises UserError when the stored plan does not say how large the sources are.
    """
    try:
        sizes = {name: {int(length): int(size) for length, size in entry["windows"].items()} for name, entry in stored["sources"].items()}
        fingerprints = {name: str(entry["fingerprint"]) for name, entry in stored["sources"].items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{where}: does not say how many windows each source has; restore the file") from None

    def sized(name: str) -> Callable[[int], int]:
        def windows(length: int) -> int:
            if length not in sizes[name]:
                raise UserError(
                    f"{where}: says nothing of windows of {length:,} tokens of '{name}'; config.yaml and plan.json are of two runs"
                )
            return sizes[name][length]

        return windows

    def of_shards(name: str) -> Callable[[int], np.ndarray]:
        def windows(length: int) -> np.ndarray:
            found = stored["sources"][name].get("shard_windows")
            if not isinstance(found, dict) or not isinstance(found.get(str(length)), list):
                raise UserError(f"{where}: does not say how many windows each shard of '{name}' has; restore the file")
            return np.array(found[str(length)], np.int64)

        return windows

    unknown = [name for name in config.sources if name not in sizes]
    if unknown:
        raise UserError(f"{where}: knows no source '{unknown[0]}'; config.yaml and plan.json are of two runs")
    shard_windows = {name: of_shards(name) for name in config.sources}
    return compile_plan(config, {name: sized(name) for name in config.sources}, fingerprints, shard_windows)


def keep_plan(run: Path, plan: Plan, config: RunConfig) -> None:
    """Keep a plan that the run in this folder followed, so that an audit can compile it again."""
    write_text(run / FORMER_PLANS / f"{plan.fingerprint}.yaml", dump_yaml(config))
    write_json(run / FORMER_PLANS / f"{plan.fingerprint}.json", plan.as_json())


def former_plan(run: Path, fingerprint: str) -> Plan | None:
    """A plan that the run followed before, compiled again from the config kept with it; None where it was not kept.

    Raises UserError for files that are malformed, or not of this plan.
    """
    path = run / FORMER_PLANS / f"{fingerprint}.json"
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint) or not path.is_file():
        return None
    plan = recompile(load_config(path.with_suffix(".yaml"), RunConfig), stored_plan(path), str(path))
    if plan.fingerprint != fingerprint:
        raise UserError(f"{path.with_suffix('.yaml')}: gives the plan {plan.fingerprint[:12]}…, not that of its name; restore the file")
    return plan


def disagreement(before: Plan, after: Plan, first: int, end: int) -> str | None:
    """The first thing that steps [first, end) of two plans do not have in common, in words; None where they read the very same
    windows, in the same order, in the same batches, for the same objective.

    Stages that were declared alike and begin alike are alike, and so are those with constant shares whose batches are the same this far;
    others are compared sample by sample.
    """
    if end > after.num_steps:
        return f"the stages end at step {after.num_steps:,}"
    for name in before.sources:
        if name in after.sources and before.described(name)["fingerprint"] != after.described(name)["fingerprint"]:
            return f"the shards of '{name}' are others"
    step = first
    with progress("comparing the plans", before.first_sample(end) - before.first_sample(first), "windows") as bar:
        while step < end:
            one, other = before.stage_at(step), after.stage_at(step)
            until = min(one.end_step, other.end_step, end)
            if one.objective != other.objective:
                return f"step {step:,} was for the objective '{one.objective.words()}', and would have been for '{other.objective.words()}'"
            if not _alike(before, one, after, other, until):
                each = max(1, _CHUNK_SAMPLES // one.batch_size)
                until = min(until, one.same_batch_until(step), other.same_batch_until(step), step + each)
                found = _difference(before, one, after, other, step, until)
                if found:
                    return found
            bar.advance(before.first_sample(until) - before.first_sample(step))
            step = until
    return None


def _alike(before: Plan, one: StagePlan, after: Plan, other: StagePlan, until: int) -> bool:
    """Whether two stages are declared alike and begin alike: then so are all their samples. Where no share moves, the stages need
    not end alike: an order never depends on what follows it (interleave.py), so batches alike up to step `until` are enough.
    """

    def beginning(plan: Plan, stage: StagePlan) -> tuple[Any, ...]:
        members = [(plan.sources[index], int(stage.cursors[index]), int(stage.windows[index])) for index in stage.members.tolist()]
        return plan.seed, plan.block_shards, stage.first_step, stage.mixture, members

    if beginning(before, one) != beginning(after, other):
        return False
    constant = all(isinstance(share, str) for share in one.mixture.values())
    steps = until - one.first_step
    return one.whole == other.whole or (constant and one.whole.cut(steps) == other.whole.cut(steps))


def _difference(before: Plan, one: StagePlan, after: Plan, other: StagePlan, step: int, until: int) -> str | None:
    """As `disagreement`, of some steps of one stage and one batch size in each plan."""
    if one.sequence_length != other.sequence_length:
        return f"step {step:,} had windows of {one.sequence_length:,} tokens, and would have had {other.sequence_length:,}"
    size = one.batch_size_at(step)
    if size != other.batch_size_at(step):
        return f"step {step:,} had {size:,} windows, and would have had {other.batch_size_at(step):,}"
    mine, theirs = before.samples(step, until - step), after.samples(step, until - step)
    place = {name: index for index, name in enumerate(before.sources)}
    named = np.array([place.get(name, -1) for name in after.sources])[theirs.source]
    differs = (mine.source != named) | (mine.window != theirs.window) | (mine.epoch != theirs.epoch)
    if not differs.any():
        return None
    at = int(differs.argmax())
    words = [
        f"window {int(samples.window[at]):,} of '{plan.sources[int(samples.source[at])]}' in epoch {int(samples.epoch[at])}"
        for plan, samples in ((before, mine), (after, theirs))
    ]
    return f"step {step + at // size:,} read {words[0]}, and would have read {words[1]}"
