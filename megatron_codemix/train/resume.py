"""Where a run continues, and whether what is asked for is still the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from megatron_codemix.checkpoint import Checkpoint, Ranks, differences, newest_together, on_main, resume_point, step_folders
from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json
from megatron_codemix.train.changes import CHANGEABLE, changes, require_same_past
from megatron_codemix.train.initial import require_same_beginning
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.log import finished

FIXED = {"precision", "document_masking", "model", "seeds", "branch", "width_transfer"}
"""Sections of a config that a run cannot change on its way. Paths may (files move: the plan knows their
fingerprints), and so may engine, layout, micro-batch size, validation, checkpoints and logging; stages and optimizer on purpose alone."""


Resume = Literal["auto", "never", "require"]
"""auto: continue if there is a checkpoint; never: there must be none; require: there must be one."""


def find_checkpoint(
    config: RunConfig,
    inputs: Inputs,
    ranks: Ranks,
    resume: Resume = "auto",
    beat: Callable[[], None] = lambda: None,
    accept: bool = False,
) -> Checkpoint | None:
    """The checkpoint to continue from, verified and of this very run; None for a new run. Collective.

    accept: stages and optimizer may be others than before, as long as the steps made would have read the same. beat: called on
    every process every few seconds while the files are hashed. Raises UserError, on every process, when the newest checkpoint
    belongs to another run, naming what differs, and where `resume` asks for another thing than is there.
    """
    on_main(ranks, lambda: require_as_asked(config, resume))
    found = resume_point(config.output, ranks, beat)
    if found is not None:
        on_main(ranks, lambda: _require_same_run(config, inputs, found, accept))
    return found


def is_finished(config: RunConfig, inputs: Inputs, ranks: Ranks, accept: bool = False) -> bool:
    """Whether the run folder holds this very run, trained and validated to its end. Collective.

    Raises UserError when it holds another one.
    """
    if not on_main(ranks, lambda: finished(config.output)):
        return False
    checkpoint = newest_together(config.output, ranks)
    if checkpoint is None or checkpoint.step < inputs.plan.num_steps:
        return False
    on_main(ranks, lambda: _require_same_run(config, inputs, checkpoint, accept))
    return True


def finished_words(config: RunConfig) -> str:
    """What the command says of a finished run: what was changed on purpose has nothing left to act on."""
    newest = step_folders(config.output)[0]
    changed = changes(Checkpoint.open(newest, contents=False).config(), config)
    without = f", so nothing was trained with what was changed ({', '.join(changed)})" if changed else ""
    remedy = "; to train on, give it more tokens or stages, to train it anew, another 'output'" if changed else ""
    return f"{config.name}: finished already{without}; newest checkpoint: {newest}{remedy}"


def require_as_asked(config: RunConfig, resume: Resume) -> None:
    """Raises UserError where `resume` asks for another thing than lies in the run folder."""
    there = bool(step_folders(config.output))
    if resume == "never" and there:
        raise UserError(f"{config.output}: holds checkpoints, and --resume never was asked for; choose another 'output', or delete them")
    if resume == "require" and not there:
        raise UserError(
            f"{config.output}: holds no checkpoint, and --resume require was asked for; check 'output', or start it anew without"
        )


def _require_same_run(config: RunConfig, inputs: Inputs, checkpoint: Checkpoint, accept: bool) -> None:
    before = checkpoint.config()
    remedy = "set it back to continue that run, or choose another 'output' for a new one"
    fixed = differences(_sections(config, FIXED), _sections(before, FIXED))
    changed = differences(_sections(config, CHANGEABLE), _sections(before, CHANGEABLE))
    problems = [f"{config.output}: holds a run with another {line}; {remedy}" for line in fixed]
    if (config.branch is None) != (before.branch is None):  # nothing else of it is worth comparing
        raise UserError(f"{config.output}: holds {_origin(before)}, and this is {_origin(config)}; choose another 'output'")
    if not accept:
        problems += [f"{config.output}: holds a run with another {line}; {remedy}, or pass --accept-changes" for line in changed]
    if problems:
        raise UserError(*problems)
    require_same_beginning(config, checkpoint)
    checkpoint.expect(config.model, inputs.tokenizer.vocab_size, inputs.tokenizer.fingerprint)
    if accept and changed:
        require_same_past(config, inputs, checkpoint)
        return
    if inputs.plan.fingerprint != checkpoint.record.plan:
        stored = read_json(config.output / "plan.json", "plan")
        lines = differences(inputs.plan.as_json(), stored if isinstance(stored, dict) else {})
        lines = [line for line in lines if ".max_epochs:" not in line] or ["plan"]
        lines = [*differences(_order(config), _order(before)), *lines]
        raise UserError(f"{config.output}: holds a run with another plan ({lines[0]}); {remedy}")


def _origin(config: RunConfig) -> str:
    return f"a branch of {config.branch.run}, step {config.branch.step:,}" if config.branch else "a run that is no branch"


def _order(config: RunConfig) -> dict[str, Any]:
    """What decides in which order a source's windows are read."""
    return {f"data.{name}": value for name, value in config.data.model_dump(mode="json", include={"order", "block_shards"}).items()}


def _sections(config: RunConfig, names: set[str]) -> dict[str, Any]:
    """Some sections of a config; of a branch without the path of its trunk, which may have moved."""
    sections = config.model_dump(mode="json", include=names)
    if sections.get("branch"):
        del sections["branch"]["run"]
    return sections
