"""Going back: which steps are left out, and which checkpoints are given up. Files alone, in the main process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_codemix.checkpoint import discard, step_folders
from megatron_codemix.config import GuardsConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.files import read_json
from megatron_codemix.mixture import Lineage
from megatron_codemix.progress import say
from megatron_codemix.train.guards.skips import SKIPS_NAME, PlannedSkip, PlannedSkips


def plan_skip(settings: GuardsConfig, fault: int, base: int | None, num_steps: int, why: str, is_branch: bool = False) -> PlannedSkip:
    """What a rewind leaves out after a fault at step `fault` (0-based): [fault − skip_before, fault + skip_after).

    As in PaLM (arXiv 2204.02311, section 5.1): go back to a checkpoint from before the spike, and do not train on the batches
    around it again. base: updates of the checkpoint to go back to; it begins there where that is later. Raises JobError where there
    is none.
    """
    if base is None:
        remedy = "set checkpoint.every_steps, or have guards skip instead, and start the same command again"
        neither = ", the trunk's neither" if is_branch else ""
        raise JobError(f"{why}; there is no checkpoint to go back to{neither}: {remedy}")
    return PlannedSkip(first=max(fault - settings.skip_before, base), end=min(fault + settings.skip_after, num_steps), fault=fault, why=why)


def give_up(run_folder: Path, planned: PlannedSkips, require_ours: Callable[[], None], to_trunk: bool = False) -> None:
    """Delete the checkpoints that have trained on a step which is to be left out. A rewind calls it, and each start of the run.

    require_ours: raises UserError where another process has taken the folder over; asked before each deletion. Raises UserError, and
    deletes nothing, where none would be left: no rewind plans that but one to the checkpoint of another run, the trunk (to_trunk).
    """
    folders = step_folders(run_folder) if len(planned) else []
    given_up = [folder for folder in folders if _is_given_up(folder, planned)]
    if folders and len(given_up) == len(folders) and not to_trunk:
        path = run_folder / SKIPS_NAME
        raise UserError(f"{path}: would give up every checkpoint; it was altered: restore it, or delete it to leave out nothing")
    for folder in given_up:
        require_ours()
        try:
            discard(folder)
        except OSError as error:
            raise JobError(f"{folder}: was given up and cannot be deleted ({error.strerror or error}); delete it") from None
        say(f"{folder.name} is given up: it was trained on steps that are left out now")


def _is_given_up(folder: Path, planned: PlannedSkips) -> bool:
    try:
        return planned.given_up(Lineage.from_json(read_json(folder / "lineage.json", "lineage")))
    except UserError:  # a damaged one; whoever opens it says so
        return False
