"""RUN/checkpoints/step-…: opened verified, the newest good one found, what killed processes left swept away.

    checkpoint = Checkpoint.open("RUN")                           # the newest good one, or one step folder
    engine.load_pieces(PieceReader(checkpoint.weights))

`publish.Saver` writes them. A process killed at any moment leaves whole checkpoints and, at most, hidden `.step-…tmp`
folders, which the next start removes: the caller must be the run folder's only writer (train/lock.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.checkpoint.record import RECORD_NAME, Damaged, Record, differences, read_record, verify
from megatron_codemix.config import ModelConfig, RunConfig, load_config
from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.files import fsync_directory, read_json, remove_folder
from megatron_codemix.progress import say
from megatron_codemix.tokenizer import JSON_NAME, MODEL_NAME
from megatron_codemix.worker import speaks_for_all

CHECKPOINTS = "checkpoints"
_STEP_NAME = re.compile(r"step-(\d{8,})")
REPLACED = ".replaced.tmp"
"""End of the hidden name of a checkpoint while a newer one of its step takes its place."""
_REPLACED_NAME = re.compile(rf"\.(step-\d{{8,}})\..*{re.escape(REPLACED)}")


@dataclass(frozen=True)
class Checkpoint:
    """A step folder whose record has been read and whose files have been checked."""

    folder: Path
    record: Record

    @classmethod
    def open(cls, path: Path | str, contents: bool = True) -> Checkpoint:
        """Open a step folder, or the newest good checkpoint of a run folder.

        contents: verify each file's sha256; else only that it is there and has its size.
        Raises UserError: nothing there, not a checkpoint, another format version, a missing, truncated, altered or
        unreadable file.
        """
        try:
            return cls._open(Path(path), contents)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror or error}); mend that, or use another checkpoint") from None

    @classmethod
    def _open(cls, path: Path, contents: bool) -> Checkpoint:
        if path.is_dir() and not (path / RECORD_NAME).is_file() and (path / CHECKPOINTS).is_dir():
            found = newest(path, contents)
            if found is None:
                raise UserError(f"{path}: has no checkpoint yet; train it first with `codemix train`")
            return found
        if (path / "plan.json").is_file() and not (path / RECORD_NAME).is_file():
            raise UserError(f"{path}: has no checkpoint yet; train it first with `codemix train`")
        record = read_record(path)
        if _STEP_NAME.fullmatch(path.name) and step_of(path) != record.step:
            raise Damaged(f"{path}: holds the checkpoint of step {record.step}; give it back its name, or delete it")
        verify(path, record, contents)
        return cls(path, record)

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.record.step

    @property
    def weights(self) -> Path:
        """Folder of the model's and the optimizer's state, for a `PieceReader`."""
        return self.folder / "weights"

    @property
    def tokenizer(self) -> Path:
        """The run's tokenizer: a SentencePiece model or a tokenizer.json."""
        return self.folder / (JSON_NAME if JSON_NAME in self.record.files else MODEL_NAME)

    def config(self) -> RunConfig:
        """The resolved config of the run that wrote it."""
        return load_config(self.folder / "config.yaml", RunConfig)

    def ledger(self) -> dict[str, Any]:
        """Content of ledger.json."""
        return read_json(self.folder / "ledger.json", "ledger")

    def lineage(self) -> dict[str, Any]:
        """Content of lineage.json."""
        return read_json(self.folder / "lineage.json", "lineage")

    def guards(self) -> dict[str, Any] | None:
        """Content of guards.json; None where there is none."""
        return read_json(self.folder / "guards.json", "state of the guards") if "guards.json" in self.record.files else None

    def expect(self, model: ModelConfig, vocab_size: int, tokenizer_fingerprint: str) -> None:
        """Refuse to be loaded into another model.

        Raises UserError naming each field that differs: before anything is loaded.
        """
        mine = {"model": model.model_dump(), "vocab_size": vocab_size}
        theirs = {"model": self.record.model.model_dump(), "vocab_size": self.record.vocab_size}
        problems = [
            f"{self.folder}: is a checkpoint of another model ({line}); use the config it was trained with, {self.folder / 'config.yaml'}"
            for line in differences(mine, theirs)
        ]
        if tokenizer_fingerprint != self.record.tokenizer_fingerprint:
            problems.append(
                f"{self.folder}: was trained with another tokenizer ({self.record.tokenizer_fingerprint[:12]}…, "
                f"not {tokenizer_fingerprint[:12]}…); use {self.tokenizer}"
            )
        if problems:
            raise UserError(*problems)


def step_folders(run_folder: Path) -> list[Path]:
    """RUN/checkpoints/step-… folders, newest first, unverified."""
    store = Path(run_folder) / CHECKPOINTS
    if not store.is_dir():
        return []
    return sorted((path for path in store.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()), key=step_of, reverse=True)


def step_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(run_folder) / CHECKPOINTS / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a step folder's name."""
    return int(folder.name.removeprefix("step-"))


def newest(run_folder: Path, contents: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None when it has none at all. A run may be training into the folder.

    A damaged one is passed over with a warning on stderr. Raises UserError when all are damaged (silently
    starting anew would throw the run away), or when one has another format version.
    """
    return first_whole(lambda: step_folders(run_folder), lambda folder: Checkpoint.open(folder, contents), speaks_for_all())


def first_whole(listed: Callable[[], list[Path]], opened: Callable[[Path], Checkpoint], speaks: bool) -> Checkpoint | None:
    """The first of the listed folders that can be opened; as `newest`. opened: raises Damaged for the others; speaks: warn of those."""
    while True:
        folders, problems = listed(), []
        for folder in folders:
            try:
                return opened(folder)
            except Damaged as damage:
                problems += damage.problems
                if speaks and folder.is_dir():
                    say(f"warning: {damage.problems[0]}; trying the one before it")
        if not folders:
            return None
        if folders == listed():  # else a run that trains has published others, and pruned these
            raise UserError(
                f"{folders[0].parent}: no checkpoint in it is whole; restore one, or delete the folder to start anew", *problems
            )


def last_attempt(run_folder: Path) -> int:
    """The highest attempt that published a checkpoint which is still there; -1 for none."""
    attempts = [-1]
    for folder in step_folders(run_folder):
        with suppress(UserError):  # a damaged one; whoever opens it says so
            attempts.append(read_record(folder).attempt)
    return max(attempts)


def prepare_store(run_folder: Path) -> None:
    """Make RUN/checkpoints, and remove what killed processes left half-written or half-deleted in it.

    The caller holds lock and attempt. Raises UserError when the folder cannot be made or written to.
    """
    store = Path(run_folder) / CHECKPOINTS
    try:
        store.mkdir(parents=True, exist_ok=True)
        for left in list(store.iterdir()):
            replaced = _REPLACED_NAME.fullmatch(left.name)
            if replaced and not (store / replaced[1]).exists():
                os.rename(left, store / replaced[1])  # killed before the newer one had taken its place
                fsync_directory(store)
            elif left.name.startswith(".step-") and left.name.endswith(".tmp"):
                _sweep(left)
        probe = store / ".step-writable.tmp"
        probe.mkdir()
        probe.rmdir()
    except FileExistsError:
        raise UserError(f"{store}: a file where the folder of checkpoints belongs; move it away, or choose another 'output'") from None
    except OSError as error:
        raise PassingError(f"{store}: cannot be written to ({error.strerror}); mend that, or choose another 'output'") from None


def _sweep(left: Path) -> None:
    try:
        remove_folder(left)
    except OSError as error:
        say(f"warning: {left}: left by a save that was killed, and cannot be deleted ({error.strerror or error}); its room is lost")


def discard(folder: Path) -> None:
    """Delete a checkpoint so that no half of it is ever taken for one: rename it out of sight first.

    Raises OSError when some of it stays.
    """
    hidden = folder.with_name(f".{folder.name}.deleted.tmp")
    remove_folder(hidden)
    os.rename(folder, hidden)
    fsync_directory(folder.parent)
    remove_folder(hidden)
