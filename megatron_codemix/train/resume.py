"""Where a run continues, and whether what is asked for is still the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from megatron_codemix.checkpoint import Checkpoint, Ranks, differences, newest_together, on_main, resume_point, step_folders
from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json
from megatron_codemix.train.initial import require_same_beginning
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.log import finished

FIXED = {"engine", "precision", "document_masking", "model", "stages", "seeds", "optimizer", "width_transfer"}
"""Sections of a config that a run cannot change on its way. Paths may (files move: the plan knows their
fingerprints), and so may layout, micro-batch size, validation, checkpoints and logging."""


Resume = Literal["auto", "never", "require"]
"""auto: continue if there is a checkpoint; never: there must be none; require: there must be one."""


def find_checkpoint(
    config: RunConfig, inputs: Inputs, ranks: Ranks, resume: Resume = "auto", beat: Callable[[], None] = lambda: None
) -> Checkpoint | None:
    """The checkpoint to continue from, verified and of this very run; None for a new run. Collective.

    beat: called on every process every few seconds while the files are hashed. Raises UserError, on every process, when the
    newest checkpoint belongs to another run, naming what differs, and where `resume` asks for another thing than is there.
    """
    on_main(ranks, lambda: _require_as_asked(config, resume))
    found = resume_point(config.output, ranks, beat)
    if found is not None:
        on_main(ranks, lambda: _require_same_run(config, inputs, found))
    return found


def is_finished(config: RunConfig, inputs: Inputs, ranks: Ranks) -> bool:
    """Whether the run folder holds this very run, trained and validated to its end. Collective.

    Raises UserError when it holds another one.
    """
    if not on_main(ranks, lambda: finished(config.output)):
        return False
    checkpoint = newest_together(config.output, ranks)
    if checkpoint is None or checkpoint.step < inputs.plan.num_steps:
        return False
    on_main(ranks, lambda: _require_same_run(config, inputs, checkpoint))
    return True


def finished_words(config: RunConfig) -> str:
    """What the command says of a finished run."""
    return f"{config.name}: finished already; newest checkpoint: {step_folders(config.output)[0]}"


def _require_as_asked(config: RunConfig, resume: Resume) -> None:
    there = bool(step_folders(config.output))
    if resume == "never" and there:
        raise UserError(f"{config.output}: holds checkpoints, and --resume never was asked for; choose another 'output', or delete them")
    if resume == "require" and not there:
        raise UserError(
            f"{config.output}: holds no checkpoint, and --resume require was asked for; check 'output', or start it anew without"
        )


def _require_same_run(config: RunConfig, inputs: Inputs, checkpoint: Checkpoint) -> None:
    before = checkpoint.config()
    lines = differences(config.model_dump(mode="json", include=FIXED), before.model_dump(mode="json", include=FIXED))
    remedy = "set it back to continue that run, or choose another 'output' for a new one"
    if lines:
        raise UserError(*(f"{config.output}: holds a run with another {line}; {remedy}" for line in lines))
    require_same_beginning(config, checkpoint)
    checkpoint.expect(config.model, inputs.tokenizer.vocab_size, inputs.tokenizer.fingerprint)
    if inputs.plan.fingerprint != checkpoint.record.plan:
        stored = read_json(config.output / "plan.json", "plan")
        lines = differences(inputs.plan.as_json(), stored if isinstance(stored, dict) else {})
        lines = [line for line in lines if ".max_epochs:" not in line] or ["plan"]
        raise UserError(f"{config.output}: holds a run with another plan ({lines[0]}); {remedy}")
