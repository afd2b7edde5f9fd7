"""A study's config → its plan: shares × seeds, a layout for each, the twins; every config resolved, every input opened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from megatron_codemix.config import RunConfig, StudyConfig, data_ranks, parse_config
from megatron_codemix.config.section import exact_share
from megatron_codemix.config.study import arm_name, twin_name
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import cautions
from megatron_codemix.study.layouts import assign, twins
from megatron_codemix.study.plan import ARM_FILE, Arm, StudyPlan, read_arm
from megatron_codemix.train.inputs import open_inputs


def make_plan(config: StudyConfig) -> StudyPlan:
    """Expand shares × seeds, give each arm its layout, add controls and twins, resolve every config and see that the corpus can feed it.

    Raises UserError for shards or a tokenizer that are missing or do not fit, and for a source that
    would be read more often than its `max_epochs`.
    """
    problems: list[str] = []
    found: dict[str, list[Arm]] = {"arms": [], "controls": [], "twins": []}
    for share, seed, layout, twin in _assignments(config):
        controls = [] if twin or not exact_share(share) else config.controls
        for control in (None, *controls):
            try:
                arm = _make_arm(config, share, seed, layout, twin, control)
                found["twins" if twin else "controls" if control else "arms"].append(arm)
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(*_once(problems))
    return StudyPlan(
        name=config.name,
        output=config.output,
        vary=config.vary,
        against=config.against,
        banner=config.banner,
        baseline_tokens=config.baseline_tokens,
        evaluation=config.evaluation.model_dump(mode="json"),
        arms=tuple(found["arms"]),
        twins=tuple(found["twins"]),
        controls=tuple(found["controls"]),
        mode=config.mode,
    )


def _assignments(config: StudyConfig) -> Sequence[tuple[float | str, int, str | None, bool]]:
    """(share, seed, layout, whether it is a twin) of everything to train, arms first."""
    names, shares, seeds = list(config.layouts), config.shares, config.seeds
    if not names:
        return [(share, seed, None, False) for share in shares for seed in seeds]
    begun, begun_twins = _begun(config, names)
    turns = assign(len(shares), len(seeds), len(names), begun, begun_twins)
    arms = [(share, seed, names[turns[i][j]], False) for i, share in enumerate(shares) for j, seed in enumerate(seeds)]
    again = twins(turns, len(names), config.twins, begun_twins)
    return arms + [(shares[i], seeds[j], names[layout], True) for i, j, layout in again]


def _begun(config: StudyConfig, names: list[str]) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """(share, seed) → layout of the arms that have begun, and of their twins."""
    arms: dict[tuple[int, int], int] = {}
    again: dict[tuple[int, int], int] = {}
    for (i, share), (j, seed) in product(enumerate(config.shares), enumerate(config.seeds)):
        name = arm_name(config.vary, share, seed)
        if (path := config.output / "arms" / name / ARM_FILE).exists() and (layout := read_arm(path).layout) in names:
            arms[i, j] = names.index(layout)
        for number, layout in enumerate(names):
            if (config.output / "arms" / twin_name(name, layout) / ARM_FILE).exists() and arms.get((i, j)) != number:
                again.setdefault((i, j), number)
    return arms, again


def _make_arm(config: StudyConfig, share: float | str, seed: int, layout: str | None, twin: bool, control: str | None = None) -> Arm:
    """One arm, twin or control with its config resolved and its inputs opened. Raises UserError naming it."""
    raw = config.run_config(share, seed, layout, twin, control)
    where = f"study {config.name}, arm {raw['name']}"
    run = parse_config(raw, RunConfig, where)
    try:
        inputs, schedule = _inputs_and_schedule(run)
    except UserError as error:
        raise UserError(*(f"{where}: {problem}" for problem in error.problems)) from None
    return Arm(
        run.name,
        str(exact_share(share)),
        seed,
        run.model_dump(mode="json"),
        inputs,
        schedule,
        layout=layout,
        data_ranks=1 if layout is None else data_ranks(run, config.layouts[layout].num_processes),
        twin_of=arm_name(config.vary, share, seed) if twin else None,
        control=control,
        control_of=arm_name(config.vary, share, seed) if control else None,
    )


def _inputs_and_schedule(run: RunConfig) -> tuple[dict[str, str], dict[str, Any]]:
    opened = open_inputs(run)
    inputs = {"tokenizer": opened.tokenizer.fingerprint}
    inputs |= {f"sources.{name}": reader.manifest.fingerprint for name, reader in opened.readers.items()}
    modalities = {name: reader.manifest.modality for name, reader in opened.readers.items()}
    schedule = {
        "steps": opened.plan.num_steps,
        "tokens": sum(stage.tokens for stage in opened.plan.stages),
        "epochs": {name: round(float(epochs), 6) for name, epochs in opened.plan.epochs().items()},
        "plan": opened.plan.fingerprint,
        "cautions": cautions(opened.plan, modalities),
    }
    return inputs, schedule


def _once(problems: list[str]) -> list[str]:
    """Drop problems that differ only in the arm they were met in."""
    first: dict[str, str] = {}
    for problem in problems:
        first.setdefault(problem.split(": ", 1)[1], problem)
    return list(first.values())
