"""What a checkpoint holds beside weights and optimizer, and how it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_codemix.checkpoint.record import FORMAT_VERSION, RECORD_NAME, FileEntry, Form, Layout, Record
from megatron_codemix.config import RunConfig, dump_yaml, padded_vocab_size
from megatron_codemix.files import fsync_directory
from megatron_codemix.tokenizer import file_name_of


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
    """Content of tokenizer.model or tokenizer.json; its sha256 is the tokenizer's fingerprint."""
    plan: str
    """Fingerprint of the plan."""
    cursors: dict[str, int]
    """Source → samples drawn before `step`."""
    ledger: dict[str, Any]
    """`Ledger.as_json()` of everything consumed before `step`."""
    lineage: dict[str, Any]
    """`Lineage.as_json()`."""
    guards: dict[str, Any] | None = None
    """`Guard.as_json()` after `step`; None: of a run without."""
    attempt: int = 0
    """Which start of the run this is."""
    world_size: int = 1
    """Processes of the run."""
    revision: str = "unknown"
    """Of the code (`revision.code_revision`)."""


def write_state(folder: Path, state: State, form: Form, weights: Mapping[str, FileEntry]) -> None:
    """Write everything but weights/ into a checkpoint's hidden folder, the record last, and make all of it durable.

    weights: relative path → entry of the files that were written, read back and made durable already.
    """
    contents = {
        "config.yaml": dump_yaml(state.config).encode(),
        "ledger.json": _json(state.ledger),
        "lineage.json": _json(state.lineage),
        file_name_of(state.tokenizer_model): state.tokenizer_model,
    }
    if state.guards is not None:
        contents["guards.json"] = _json(state.guards)
    entries = {name: FileEntry(size=len(content), sha256=sha256(content).hexdigest()) for name, content in contents.items()}
    for name, content in contents.items():
        _write(folder / name, content)
    write_record(folder, _record(state, form, {**entries, **weights}))


def write_record(folder: Path, record: Record) -> None:
    """Write checkpoint.json into a hidden folder, and make the folder's entries durable."""
    _write(folder / RECORD_NAME, _json(record.model_dump(mode="json")))
    fsync_directory(folder / "weights")
    fsync_directory(folder)


def _record(state: State, form: Form, files: dict[str, FileEntry]) -> Record:
    return Record(
        format_version=FORMAT_VERSION,
        created_by=version("megatron-codemix"),
        revision=state.revision,
        run=state.config.name,
        step=state.step,
        attempt=state.attempt,
        form=form,
        layout=Layout.of(state.config.parallel, state.world_size),
        engine=state.config.engine,
        model=state.config.model,
        vocab_size=state.vocab_size,
        padded_vocab_size=padded_vocab_size(state.vocab_size, state.config.model.vocab_multiple),
        precision=state.config.precision,
        tokenizer_fingerprint=sha256(state.tokenizer_model).hexdigest(),
        plan=state.plan,
        cursors=state.cursors,
        files=files,
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    # plain: the folder becomes visible as a whole, by one rename
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
