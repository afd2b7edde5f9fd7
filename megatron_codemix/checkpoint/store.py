"""RUN/checkpoints/step-…: published by one rename, verified before use, the newest good one never deleted.

    publish(run_folder, State(…), engine.save_weights, 2, topology)    # → RUN/checkpoints/step-00000100
    checkpoint = Checkpoint.open("RUN")                           # the newest good one, or one step folder
    engine.load_weights(checkpoint.weights)

A process killed at any moment leaves whole checkpoints and, at most, hidden `.…tmp` folders, which the next
`publish` removes: the caller must be the run folder's only writer (train/lock.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from megatron_codemix.checkpoint.record import FORMAT_VERSION, RECORD_NAME, Damaged, Record, differences, list_files, read_record, verify
from megatron_codemix.config import ModelConfig, RunConfig, dump_yaml, load_config, padded_vocab_size
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory, fsync_directory, read_json

CHECKPOINTS = "checkpoints"
_STEP_NAME = re.compile(r"step-(\d{8,})")


class Ranks(Protocol):
    """What publishing needs of the processes of a run; `parallel.Topology` has it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what one process writes."""
        ...

    def barrier(self) -> None:
        """Wait for every process."""
        ...

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        ...


@dataclass(frozen=True)
class State:
    """Everything of a run at a step except its weights and optimizer."""

    step: int
    """Optimizer updates done."""
    config: RunConfig
    """Resolved config."""
    vocab_size: int
    """Pieces of the tokenizer."""
    tokenizer_model: bytes
    """Content of tokenizer.model; its sha256 is the tokenizer's fingerprint."""
    plan: str
    """Fingerprint of the plan."""
    cursors: dict[str, int]
    """Source → samples drawn before `step`."""
    ledger: dict[str, Any]
    """`Ledger.as_json()` of everything consumed before `step`."""
    lineage: dict[str, Any]
    """`Lineage.as_json()`."""


@dataclass(frozen=True)
class Checkpoint:
    """A step folder whose record has been read and whose files have been checked."""

    folder: Path
    record: Record

    @classmethod
    def open(cls, path: Path | str, contents: bool = True) -> Checkpoint:
        """Open a step folder, or the newest good checkpoint of a run folder.

        contents: verify each file's sha256; else only that it is there and has its size.
        Raises UserError: nothing there, not a checkpoint, another format version, a missing, truncated or altered file.
        """
        path = Path(path)
        if path.is_dir() and not (path / RECORD_NAME).is_file() and (path / CHECKPOINTS).is_dir():
            found = newest(path, contents)
            if found is None:
                raise UserError(f"{path}: has no checkpoint yet; train it first with `codemix train`")
            return found
        if (path / "plan.json").is_file() and not (path / RECORD_NAME).is_file():
            raise UserError(f"{path}: has no checkpoint yet; train it first with `codemix train`")
        record = read_record(path)
        if _STEP_NAME.fullmatch(path.name) and _step_of(path) != record.step:
            raise Damaged(f"{path}: holds the checkpoint of step {record.step}; give it back its name, or delete it")
        verify(path, record, contents)
        return cls(path, record)

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.record.step

    @property
    def weights(self) -> Path:
        """Folder of the engine's distributed checkpoint (model and optimizer)."""
        return self.folder / "weights"

    @property
    def tokenizer(self) -> Path:
        """The run's SentencePiece model."""
        return self.folder / "tokenizer.model"

    def config(self) -> RunConfig:
        """The resolved config of the run that wrote it."""
        return load_config(self.folder / "config.yaml", RunConfig)

    def ledger(self) -> dict[str, Any]:
        """Content of ledger.json."""
        return read_json(self.folder / "ledger.json", "ledger")

    def lineage(self) -> dict[str, Any]:
        """Content of lineage.json."""
        return read_json(self.folder / "lineage.json", "lineage")

    def expect(self, model: ModelConfig, vocab_size: int, tokenizer_fingerprint: str) -> None:
        """Refuse to be loaded into another model.

        Raises UserError naming each field that differs: megatron-core would load some mismatches silently.
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


def publish(run_folder: Path, state: State, save_weights: Callable[[Path], None], keep: int, ranks: Ranks) -> Path:
    """Write RUN/checkpoints/step-…, make it durable, then let all but the newest `keep` go; returns its folder.

    Collective over `ranks`. save_weights: called on every process with an existing empty folder, which
    receives the model and the optimizer. Raises FileExistsError when that step has a checkpoint already.
    """
    store = Path(run_folder) / CHECKPOINTS
    target = store / f"step-{state.step:08d}"
    with _shared_directory(target, ranks) as folder:
        save_weights(folder / "weights")
        ranks.barrier()
        if ranks.is_main:
            _write_all_but_weights(folder, state)
    if ranks.is_main:
        up_to_this = [folder for folder in step_folders(run_folder) if _step_of(folder) <= state.step]
        for old in up_to_this[max(keep, 1) :]:
            _remove(old)
    ranks.barrier()
    return target


@contextmanager
def _shared_directory(target: Path, ranks: Ranks) -> Iterator[Path]:
    """`atomic_directory` of the main process, as seen by all; holds a folder `weights`."""
    if not ranks.is_main:
        yield Path(ranks.broadcast(None))
        return
    _sweep(target.parent)
    with atomic_directory(target) as folder:
        (folder / "weights").mkdir()
        yield Path(ranks.broadcast(str(folder)))


def _write_all_but_weights(folder: Path, state: State) -> None:
    (folder / "config.yaml").write_text(dump_yaml(state.config), "utf-8")
    (folder / "tokenizer.model").write_bytes(state.tokenizer_model)
    _write(folder / "ledger.json", state.ledger)
    _write(folder / "lineage.json", state.lineage)
    record = Record(
        format_version=FORMAT_VERSION,
        created_by=version("megatron-codemix"),
        run=state.config.name,
        step=state.step,
        engine=state.config.engine,
        model=state.config.model,
        vocab_size=state.vocab_size,
        padded_vocab_size=padded_vocab_size(state.vocab_size, state.config.model.vocab_multiple),
        precision=state.config.precision,
        tokenizer_fingerprint=sha256(state.tokenizer_model).hexdigest(),
        plan=state.plan,
        cursors=state.cursors,
        files=list_files(folder),
    )
    _write(folder / RECORD_NAME, record.model_dump(mode="json"))


def step_folders(run_folder: Path) -> list[Path]:
    """RUN/checkpoints/step-… folders, newest first, unverified."""
    store = Path(run_folder) / CHECKPOINTS
    if not store.is_dir():
        return []
    return sorted((path for path in store.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()), key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def newest(run_folder: Path, contents: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None when it has none at all.

    A damaged one is passed over with a warning on stderr. Raises UserError when all are damaged (silently
    starting anew would throw the run away), or when one has another format version.
    """
    folders = step_folders(run_folder)
    problems: list[str] = []
    for folder in folders:
        try:
            return Checkpoint.open(folder, contents)
        except Damaged as damage:
            problems += damage.problems
            print(f"warning: {damage.problems[0]}; trying the one before it", file=sys.stderr, flush=True)
    if folders:
        raise UserError(f"{folders[0].parent}: no checkpoint in it is whole; restore one, or delete the folder to start anew", *problems)
    return None


def resume_point(run_folder: Path) -> Checkpoint | None:
    """`newest` for a run that is about to continue: damaged checkpoints above it are renamed `damaged-step-…`.

    They would stand in the way of the run when it comes to their step again.
    """
    checkpoint = newest(run_folder)
    for folder in step_folders(run_folder):
        if checkpoint is None or folder == checkpoint.folder:
            break
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        print(f"warning: {folder} was set aside as {aside.name}; delete it when you have looked at it", file=sys.stderr, flush=True)
    return checkpoint


def _write(path: Path, value: Any) -> None:
    # plain: atomic_directory makes the whole folder durable and visible at once
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that no half of it is ever taken for one: rename it out of sight first."""
    hidden = folder.with_name(f".{folder.name}.deleted.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    fsync_directory(folder.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def _sweep(store: Path) -> None:
    """Remove what killed processes left half-written or half-deleted."""
    with suppress(FileNotFoundError):
        for left in store.iterdir():
            if left.name.startswith(".step-") and left.name.endswith(".tmp"):
                shutil.rmtree(left, ignore_errors=True)
