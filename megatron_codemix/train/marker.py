"""RUN/finished.json: there when nothing of the run is left to do. Schedulers judge by it, for exit codes get lost on the way."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_codemix.checkpoint import Checkpoint, newest
from megatron_codemix.errors import JobError
from megatron_codemix.files import write_json
from megatron_codemix.mixture import Ledger

FINISHED_NAME = "finished.json"
FORMAT_VERSION = 1


def mark_finished(run_folder: Path, *, name: str, step: int, tokens: int, plan: str, attempt: int) -> None:
    """Say that the run has come to its end: its last checkpoint is published and validated.

    The caller has the run folder's lock. step: updates done; tokens: targets trained on; plan: fingerprint. Raises JobError
    where the disk refuses.
    """
    facts = {"name": name, "step": step, "tokens": tokens, "attempt": attempt, "time": time.time(), "plan": plan}
    try:
        write_json(Path(run_folder) / FINISHED_NAME, {"format_version": FORMAT_VERSION, **facts})
    except OSError as error:
        problem = f"{run_folder}: finished, but {FINISHED_NAME} cannot be written ({error.strerror})"
        raise JobError(f"{problem}; make room, then start the same command again") from None


def mark_again(run_folder: Path) -> None:
    """The marker of a run that is found finished: one that lost it, or that ended before there were any."""
    checkpoint: Checkpoint | None = newest(run_folder, contents=False)
    if checkpoint is None or (Path(run_folder) / FINISHED_NAME).is_file():
        return
    record = checkpoint.record
    tokens = Ledger.from_json(checkpoint.ledger(), f"{checkpoint.folder}/ledger.json").target_tokens
    mark_finished(run_folder, name=record.run, step=record.step, tokens=tokens, plan=record.plan, attempt=record.attempt)


def unmark(run_folder: Path) -> None:
    """There is more to do. The caller has the run folder's lock. Raises OSError."""
    (Path(run_folder) / FINISHED_NAME).unlink(missing_ok=True)
