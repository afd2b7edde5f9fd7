"""A run that continues another run's checkpoint with stages of its own: the trunk found, refused where it does not fit, recorded."""

from __future__ import annotations

import shutil
from typing import Any

from megatron_codemix.checkpoint import Checkpoint, step_folder, step_folders, step_of, weights_digest
from megatron_codemix.config import Branch, RunConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json
from megatron_codemix.mixture import FORMER_PLANS, Lineage, disagreement, keep_plan
from megatron_codemix.train.inputs import Inputs


def resolve_branch(config: RunConfig) -> RunConfig:
    """The config with the trunk's stages filled in; as it is where there is no branch.

    They are the trunk's while its checkpoint is there, and those that the branch's own newest checkpoint knows otherwise.
    Raises UserError where neither is there, or the trunk's stages read sources that the config does not declare.
    """
    branch = config.branch
    if branch is None:
        return config
    try:
        history = _history_of(open_trunk(branch), branch.step)
    except UserError:
        history = _own_history(config)
        if history is None:
            raise
    raw = config.model_dump(mode="json")
    raw["branch"]["history"] = history
    return parse_config(raw, RunConfig, f"branch of {branch.run}")


def open_trunk(branch: Branch) -> Checkpoint:
    """The checkpoint that a branch leaves from; its files are looked at, not read. Raises UserError where it is not there."""
    if not branch.run.is_dir():
        raise UserError(f"branch.run: {branch.run}: no such run folder; check the path")
    folder = step_folder(branch.run, branch.step)
    if not folder.is_dir():
        there = ", ".join(f"{step_of(found):,}" for found in reversed(step_folders(branch.run))) or "none"
        raise UserError(
            f"branch.step: {branch.run} has no checkpoint of step {branch.step:,} (it has: {there}); take one of these, or train the trunk "
            "again with the step in checkpoint.keep_steps"
        )
    return Checkpoint.open(folder, contents=False)


def find_trunk(config: RunConfig, inputs: Inputs) -> Checkpoint | None:
    """The checkpoint that a new run begins from; None: it is no branch, or has begun already.

    Raises as `fitting_trunk`.
    """
    return None if step_folders(config.output) else fitting_trunk(config, inputs)


def fitting_trunk(config: RunConfig, inputs: Inputs) -> Checkpoint | None:
    """The checkpoint that a branch leaves from; None: the run is no branch.

    Its files are looked at, not read. Raises UserError where it is not there, and where model, width transfer, tokenizer, data seed,
    order or shards are not the trunk's.
    """
    branch = config.branch
    if branch is None:
        return None
    trunk = open_trunk(branch)
    before = trunk.config()
    trunk.expect(config.model, inputs.tokenizer.vocab_size, inputs.tokenizer.fingerprint)
    problems = [
        f"{name}: {mine}, but the trunk {branch.run} has {theirs}, and {what}; set it to {theirs}"
        for name, mine, theirs, what in (
            ("seeds.data", config.seeds.data, before.seeds.data, "its order of samples goes on"),
            ("document_masking", config.document_masking, before.document_masking, "its masks go on"),
            ("width_transfer.base_hidden_size", _base_width(config), _base_width(before), "its matrices keep their rates"),
            ("data.order", _order(config), _order(before), "its order of samples goes on"),
        )
        if mine != theirs
    ]
    if problems:
        raise UserError(*problems)
    plan = inputs.plan_of(before)
    words = disagreement(plan, inputs.plan, 0, branch.step)
    if plan.fingerprint != trunk.record.plan or words:
        raise UserError(
            f"branch.run: {branch.run} was not trained on these shards ({words or _other_shards(trunk, inputs, before)}); "
            "declare its sources as its config.yaml does"
        )
    return trunk


def begin_lineage(lineage: Lineage, trunk: Checkpoint) -> None:
    """Note in the lineage that was the trunk's where the branch leaves it."""
    record = trunk.record
    entry: dict[str, Any] = {"run": record.run, "step": record.step, "plan": record.plan, "weights": weights_digest(record)}
    lineage.branched.append(entry)


def keep_trunk_plans(config: RunConfig, inputs: Inputs, trunk: Checkpoint) -> None:
    """Keep the plans that the trunk's weights have followed in the branch's own folder, so that its audit needs no trunk."""
    assert config.branch is not None
    before = trunk.config()
    folder = config.output / FORMER_PLANS
    folder.mkdir(parents=True, exist_ok=True)
    followed = {interval["plan"] for interval in trunk.lineage()["intervals"]}
    for path in sorted((config.branch.run / FORMER_PLANS).glob("*")):
        if path.stem in followed:
            shutil.copyfile(path, folder / path.name)
    keep_plan(config.output, inputs.plan_of(before), before)


def _base_width(config: RunConfig) -> int | None:
    return config.width_transfer and config.width_transfer.base_hidden_size


def _order(config: RunConfig) -> str:
    """The order of windows; blocks of another size are another order."""
    return f"blocks with block_shards {config.data.block_shards}" if config.data.order == "blocks" else "global"


def _history_of(trunk: Checkpoint, step: int) -> list[dict[str, Any]]:
    config = trunk.config().model_dump(mode="json")
    parts = (config["branch"]["history"] or []) if config["branch"] else []
    return [*parts, {"stages": config["stages"], "until": step, "plan": trunk.record.plan}]


def _own_history(config: RunConfig) -> list[dict[str, Any]] | None:
    """What the branch's newest checkpoint knows of its trunk; None where there is none, or it left the trunk elsewhere."""
    assert config.branch is not None
    for folder in step_folders(config.output):
        try:
            branch = Checkpoint.open(folder, contents=False).config().branch
        except UserError:
            continue  # damaged; whoever continues it says so
        if branch is None or branch.step != config.branch.step or branch.history is None:
            return None
        return branch.model_dump(mode="json")["history"]
    return None


def _other_shards(trunk: Checkpoint, inputs: Inputs, before: RunConfig) -> str:
    """Which source differs, where the trunk's own plan is still there to tell."""
    stored = trunk.folder.parent.parent / "plan.json"
    try:
        known = read_json(stored, "plan")["sources"]
        differing = [name for name in before.sources if known[name]["fingerprint"] != inputs.plan.described(name)["fingerprint"]]
    except (UserError, KeyError, TypeError):
        differing = []
    return f"those of '{differing[0]}' are others" if differing else "its plan is another one"
