"""The checkpoint from which the processes of a run continue, verified by all of them together."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path

from megatron_codemix.checkpoint.ranks import Ranks, in_rounds, on_main
from megatron_codemix.checkpoint.record import Damaged, altered, share
from megatron_codemix.checkpoint.store import Checkpoint, first_whole, step_folders, step_of
from megatron_codemix.errors import UserError
from megatron_codemix.files import fsync_directory
from megatron_codemix.progress import say


def open_together(path: Path, ranks: Ranks, beat: Callable[[], None] = lambda: None) -> Checkpoint:
    """`Checkpoint.open`, each process hashing its share of the files. Collective.

    beat: as of `newest_together`. Raises as `Checkpoint.open` does, on every process.
    """
    checkpoint = on_main(ranks, lambda: Checkpoint.open(path, contents=False))
    names = share(checkpoint.record, ranks.rank, ranks.world_size)
    folder, record = checkpoint.folder, checkpoint.record
    problems = list(chain(*in_rounds(ranks, lambda moved: altered(folder, record, names, moved), beat)))
    if problems:
        raise Damaged(*problems)
    return checkpoint


def newest_together(run_folder: Path, ranks: Ranks, beat: Callable[[], None] = lambda: None) -> Checkpoint | None:
    """`newest`, each process hashing its share of the files. Collective.

    beat: called on every process every few seconds while any of them gets on. Raises as `newest` does, on every process.
    """
    return _first_together(lambda: step_folders(run_folder), ranks, beat)


def whole_before(run_folder: Path, step: int, ranks: Ranks, beat: Callable[[], None] = lambda: None) -> Checkpoint | None:
    """The newest whole checkpoint of at most `step` updates or, where there is none, the oldest whole one. Collective.

    None when the run has no checkpoint at all. beat: as of `newest_together`. Raises as `newest` does, on every process.
    """

    def listed() -> list[Path]:
        folders = step_folders(run_folder)
        return [folder for folder in folders if step_of(folder) <= step] + [folder for folder in folders[::-1] if step_of(folder) > step]

    return _first_together(listed, ranks, beat)


def _first_together(listed: Callable[[], list[Path]], ranks: Ranks, beat: Callable[[], None]) -> Checkpoint | None:
    """`first_whole` of the folders that the main process lists."""

    def opened(folder: Path) -> Checkpoint:
        checkpoint, problems = on_main(ranks, lambda: _looked_at(folder))
        if checkpoint is not None:
            record = checkpoint.record
            names = share(record, ranks.rank, ranks.world_size)
            problems = list(chain(*in_rounds(ranks, lambda moved: altered(folder, record, names, moved), beat)))
        if checkpoint is None or problems:
            raise Damaged(*problems)
        return checkpoint

    return first_whole(lambda: on_main(ranks, listed), opened, ranks.is_main)


def resume_point(run_folder: Path, ranks: Ranks, beat: Callable[[], None] = lambda: None) -> Checkpoint | None:
    """`newest_together` for a run that is about to continue: damaged checkpoints above it are renamed `damaged-step-…`.

    They would stand in the way of the run when it comes to their step again. The caller must be the folder's only writer.
    """
    checkpoint = newest_together(run_folder, ranks, beat)
    if checkpoint is not None:
        on_main(ranks, lambda: _set_aside(run_folder, checkpoint))
    return checkpoint


def _looked_at(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Everything but the contents of the files."""
    try:
        return Checkpoint.open(folder, contents=False), []
    except Damaged as damage:
        return None, list(damage.problems)


def _set_aside(run_folder: Path, newest: Checkpoint) -> None:
    for folder in step_folders(run_folder):
        if folder == newest.folder:
            break
        names = (f"damaged-{folder.name}" + (f"-{number}" if number > 1 else "") for number in count(1))
        aside = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
        try:
            os.rename(folder, aside)
            fsync_directory(aside.parent)
        except OSError as error:
            raise UserError(f"{folder}: is damaged and cannot be renamed ({error.strerror or error}); move it away") from None
        say(f"warning: {folder} was set aside as {aside.name}; delete it when you have looked at it")
