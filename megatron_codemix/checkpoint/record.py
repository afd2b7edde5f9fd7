"""checkpoint.json: what a checkpoint holds, and the proof that all of it is there and unaltered."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Literal

from pydantic import ValidationError

from megatron_codemix.config import ParallelConfig
from megatron_codemix.config.model import ModelConfig
from megatron_codemix.config.section import Count, CountOrZero, Section
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_file
from megatron_codemix.progress import progress

FORMAT_VERSION = 2
RECORD_NAME = "checkpoint.json"
NEUTRAL, ROUTINE = "neutral", "routine"
Form = Literal["neutral", "routine"]
"""neutral: whole tensors, the same tensors whichever layout trained the model; routine: each rank's own part, as it held it."""
_REMEDY = "restore the folder's files, or use another checkpoint"
_OTHER_FIELDS = {"missing": "missing", "extra_forbidden": "nothing that this codemix knows"}
_HASHING_THREADS = 8  # hashlib releases the interpreter lock; more than this only waits for the disk


class Damaged(UserError):
    """Not a whole checkpoint: a file is missing, truncated or altered."""


class FileEntry(Section):
    """One file of a checkpoint."""

    size: CountOrZero
    """Bytes."""
    sha256: str
    """Hex digest of its content."""


class Layout(Section):
    """The process grid that wrote a checkpoint; any other reads it."""

    tensor: Count
    """Tensor-parallel ranks."""
    sequence: bool
    """Whether norms and residuals were split over the tensor-parallel ranks too."""
    pipeline: Count
    """Pipeline ranks."""
    virtual_stages: Count
    """Model chunks per pipeline rank."""
    context: Count
    """Context-parallel ranks."""
    data: Count
    """Data-parallel ranks."""
    distributed_optimizer: bool
    """Whether the optimizer's state was split over data- and context-parallel ranks."""
    world_size: Count
    """Ranks altogether."""

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int) -> Layout:
        """The layout of a run of so many processes, which the degrees divide."""
        degrees = {name: getattr(parallel, name) for name in ("tensor", "pipeline", "context")}
        flags = {name: getattr(parallel, name) for name in ("sequence", "virtual_stages", "distributed_optimizer")}
        data = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
        return cls(**degrees, **flags, data=data, world_size=world_size)

    def words(self) -> str:
        """As in 'TP2+SP×PP2×DP2'; 'one process' for a world of one."""
        sequence = "+SP" if self.sequence and self.tensor > 1 else ""
        optimizer = "+distributed optimizer" if self.distributed_optimizer and self.data * self.context > 1 else ""
        degrees = {"TP": self.tensor, "PP": self.pipeline, "VPP": self.virtual_stages, "CP": self.context, "DP": self.data}
        parts = [f"{letters}{degree}" + (sequence if letters == "TP" else "") for letters, degree in degrees.items() if degree > 1]
        return ("×".join(parts) or "one process") + optimizer


class Record(Section):
    """The content of checkpoint.json; everything else in the folder is listed in `files`."""

    format_version: Literal[2]
    """Version of the checkpoint's layout."""
    created_by: str
    """Version of codemix."""
    revision: str
    """Commit of the code that trained, with "-dirty" where it was altered; the version where no commit is known."""
    run: str
    """Name of the run."""
    step: CountOrZero
    """Optimizer updates done."""
    attempt: CountOrZero
    """Which start of the run wrote it, from 0."""
    form: Form
    """Of the files in weights/."""
    layout: Layout
    """The process grid that trained."""
    engine: str
    """Engine that trained."""
    model: ModelConfig
    """Shape of the model."""
    vocab_size: Count
    """Pieces of the tokenizer."""
    padded_vocab_size: Count
    """Rows of the embedding."""
    precision: str
    """Precision of weights and activations during training."""
    tokenizer_fingerprint: str
    """sha256 of tokenizer.model or tokenizer.json."""
    plan: str
    """Fingerprint of the plan."""
    cursors: dict[str, CountOrZero]
    """Source → samples drawn so far."""
    files: dict[str, FileEntry]
    """Relative POSIX path → size and digest, of every other file in the folder."""


def read_record(folder: Path) -> Record:
    """Read `folder`/checkpoint.json.

    Raises UserError for another format version, and for a record of a codemix whose records have other fields; Damaged for
    what is not (or no longer) a record.
    """
    path = folder / RECORD_NAME
    if not folder.is_dir():
        raise Damaged(f"{folder}: no such checkpoint; check the path")
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise Damaged(f"{folder}: a Hugging Face directory, not a checkpoint; make it one with 'codemix convert from-hf {folder} NEW'")
        if (folder / ".metadata").is_file() or (folder / "latest_checkpointed_iteration.txt").is_file():
            raise Damaged(f"{folder}: a checkpoint of Megatron-LM; make it one of ours with 'codemix convert from-megatron {folder} NEW'")
        raise Damaged(f"{folder}: not a checkpoint (it has no {RECORD_NAME}); give a run folder or one of its checkpoints/step-… folders")
    try:
        raw = read_json(path, "checkpoint record")
    except UserError as error:
        raise Damaged(*error.problems) from None
    if not isinstance(raw, dict) or "format_version" not in raw:
        raise Damaged(f"{path}: not a checkpoint record; restore it, or use another checkpoint")
    if raw["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version {raw['format_version']}, but this codemix reads {FORMAT_VERSION}; "
            f"use the codemix that wrote it ({raw.get('created_by', 'unknown')})"
        )
    try:
        return Record.model_validate(raw)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        if wrong["type"] in _OTHER_FIELDS:  # no damage: what a code that was rolled back finds must stay where it is
            raise UserError(
                f"{path}: '{where}' is {_OTHER_FIELDS[wrong['type']]}; it was written by codemix {raw.get('created_by', 'unknown')} "
                f"(revision {raw.get('revision', 'unknown')}): use that one"
            ) from None
        raise Damaged(f"{path}: '{where}' is wrong; restore the file, or use another checkpoint") from None


def verify(folder: Path, record: Record, contents: bool = True) -> None:
    """Check every file against the record: presence and size, then, with `contents`, its sha256.

    Raises Damaged naming each file that is missing, truncated, altered or unreadable.
    """
    by_size = {name: problem for name, entry in record.files.items() if (problem := _size_problem(folder, name, entry))}
    problems = list(by_size.values())
    # readers open every file of weights/: one that does not belong there would be read too
    weights = sorted(f"weights/{path.name}" for path in (folder / "weights").glob("*.safetensors"))
    problems += [f"{folder / name}: not a file of this checkpoint; {_REMEDY}" for name in weights if name not in record.files]
    if contents:
        problems += altered(folder, record, [name for name in record.files if name not in by_size])
    if problems:
        raise Damaged(*problems)


def share(record: Record, part: int, parts: int) -> list[str]:
    """The files that the part-th of `parts` processes reads, so that each reads about as many bytes."""
    loads, mine = [0] * parts, []
    for name in sorted(record.files, key=lambda name: (-record.files[name].size, name)):
        lightest = loads.index(min(loads))
        loads[lightest] += record.files[name].size
        mine += [name] if lightest == part else []
    return mine


def altered(folder: Path, record: Record, names: Sequence[str], moved: Callable[[], None] = lambda: None) -> list[str]:
    """Which of the files have another sha256 than the record says, or cannot be read: a line each. Several are read at a time.

    moved: called, in any thread, for every MiB.
    """
    sizes = [record.files[name].size / 2**20 for name in names]

    def problem(name: str) -> str | None:
        try:
            found = sha256_file(folder / name, moved)
        except OSError as error:  # a bad sector, as often as not
            return f"{folder / name}: cannot be read ({error.strerror or error}); {_REMEDY}"
        if found == record.files[name].sha256:
            return None
        return f"{folder / name}: altered (its sha256 is not the recorded one); {_REMEDY}"

    threads = min(_HASHING_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, progress(f"verifying {folder.name}", sum(sizes), "MiB") as bar:
        problems = []
        for size, line in zip(sizes, pool.map(problem, names)):
            bar.advance(size)
            problems += [line] if line else []
    return problems


def _size_problem(folder: Path, name: str, entry: FileEntry) -> str | None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return f"{folder / RECORD_NAME}: names a file outside the checkpoint ('{name}'); {_REMEDY}"
    path = folder / name
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path}: missing; {_REMEDY}"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}"
    if not S_ISREG(found.st_mode):
        return f"{path}: missing; {_REMEDY}"
    return None if found.st_size == entry.size else f"{path}: {found.st_size} bytes where {entry.size} were written; {_REMEDY}"


def differences(expected: dict, found: dict, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two nested mappings differ, as 'a.b: x here, y there'."""
    lines = []
    for key in [*expected, *(key for key in found if key not in expected)]:
        mine, other = expected.get(key), found.get(key)
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            lines += differences(mine, other, f"{prefix}{key}.")
        elif isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            lines += differences(dict(enumerate(mine)), dict(enumerate(other)), f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_short(mine)} now, {_short(other)} in the checkpoint")
    return lines


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
