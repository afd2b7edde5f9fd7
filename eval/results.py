"""results.json and items/TASK.jsonl (docs/formats.md, eval/schema/): written whole, reused where nothing they depend on changed.

Finished tasks are kept in `unfinished.json` until all are: a run that was killed goes on where it stopped, and
results.json exists only when every task it was asked for is in it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.outcome import Outcome
from megatron_codemix.errors import JobError, UserError, printable
from megatron_codemix.files import atomic_file, sha256_file, sha256_json, write_json
from megatron_codemix.progress import say

FORMAT_VERSION = 2

_RESULTS = "results.json"
_UNFINISHED = "unfinished.json"


def fingerprint(model: dict[str, Any], settings: dict[str, Any], task: dict[str, Any], data_sha256: str) -> str:
    """What one task's numbers depend on: contents of model and data (not their places), settings, options, format."""
    options = {key: value for key, value in task.items() if key != "data"}
    contents = {key: model[key] for key in ("sha256", "definition_sha256")}
    return sha256_json({"format": FORMAT_VERSION, "model": contents, "settings": settings, "task": options, "data": data_sha256})


class ResultsFolder:
    """DIR of `codemix eval --output DIR`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_place(folder)
        self.results: dict[str, Any] | None = None
        """results.json as it stands while the folder is held, or None."""
        self._unfinished: dict[str, Any] | None = None
        self._finished: dict[str, Any] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """`holding`; what lies there is read now and not before: another command may have written since this object was made."""
        with holding(self.folder):
            self.results, self._unfinished = _read(self.folder / _RESULTS), _read(self.folder / _UNFINISHED)
            for value in (self.results, self._unfinished):  # of two tasks of one name, the one in unfinished.json is newer
                self._finished |= value["tasks"] if value else {}
            yield

    def tell_other_model(self, model: dict[str, Any]) -> None:
        """Say whose results lie here, if they are of another model by its contents."""
        earlier = (self.results or self._unfinished or {}).get("model")
        if isinstance(earlier, dict) and any(earlier.get(key) != model[key] for key in ("sha256", "definition_sha256")):
            say(f"{self.folder}: holds results of another model ({printable(str(earlier.get('path')))}); they are replaced", sys.stderr)

    def finished(self, name: str, expected: str) -> dict[str, Any] | None:
        """The entry of a task that is done under this fingerprint and whose items are intact."""
        entry = self._finished.get(name)
        if not isinstance(entry, dict) or entry.get("fingerprint") != expected:
            return None
        items = self.folder / str(entry.get("items"))
        return entry if items.is_file() and sha256_file(items) == entry.get("items_sha256") else None

    def write_task(self, name: str, kind: str, outcome: Outcome, fingerprint: str, versions: dict[str, str]) -> dict[str, Any]:
        """Write the items, and return the entry of results.json."""
        relative = f"items/{name}.jsonl"
        with _writing(self.folder), atomic_file(self.folder / relative) as handle:
            for item in outcome.items:
                handle.write(json.dumps(item, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
        return {
            "kind": kind,
            "metrics": outcome.metrics,
            "num_items": len(outcome.items),
            "items": relative,
            "items_sha256": sha256_file(self.folder / relative),
            "fingerprint": fingerprint,
            "versions": versions,
        }

    def drop_others(self, tasks: set[str]) -> list[str]:
        """Remove the items of earlier results that the new ones do not hold; returns their names.

        One folder holds the results of one command: items of another model must not lie beside them.
        """
        others = sorted(set(self._finished) - tasks)
        for name in others:
            if Path(name).name == name:  # a file that others wrote names no path outside the folder
                (self.folder / "items" / f"{name}.jsonl").unlink(missing_ok=True)
        return others

    def write(self, model: dict[str, Any], settings: dict[str, Any], tasks: dict[str, Any], whole: bool) -> dict[str, Any]:
        """Keep what is done, and return it; whole: this is all that was asked for, and becomes results.json."""
        value = {"format_version": FORMAT_VERSION, "model": model, "settings": settings, "tasks": tasks}
        with _writing(self.folder):
            write_json(self.folder / (_RESULTS if whole else _UNFINISHED), value)
        if whole:
            (self.folder / _UNFINISHED).unlink(missing_ok=True)
        return value


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """The folder is this command's alone: two that write into one would leave results of one beside items of the other.

    Raises UserError where another holds it. Made if need be, and removed if nothing comes of it.
    """
    lock = None
    while lock is None:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks the folder; None: another command has removed it meanwhile, for nothing had come of that one."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{folder}: another command writes results there; wait until it has ended, or give another --output") from None
    except OSError:
        pass  # a file system without locks
    try:
        if os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


@contextmanager
def going_on() -> Iterator[None]:
    """Ctrl-C is one line that says what becomes of the work."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what was finished is kept, the same command goes on") from None


def check_place(folder: Path) -> None:
    """Raises UserError for what is no folder of results: a file, a model's folder, one in which nothing can be written."""
    if folder.is_file():
        raise UserError(f"{folder}: is a file; --output names a folder")
    check_writable(folder)
    model = next((one.name for name in ("config.json", "*.safetensors") for one in folder.glob(name)), None)
    if model is not None:
        raise UserError(f"{folder}: holds a model ({model}); give another --output, results do not go among its files")


def check_writable(folder: Path) -> None:
    """Raises UserError for a folder, there already or not, in which nothing can be written; leaves nothing behind."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    try:
        if not nearest.is_dir():
            raise UserError(f"{folder}: cannot be written ({nearest} is a file); give another --output")
        os.rmdir(tempfile.mkdtemp(prefix=".codemix-", dir=nearest))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --output") from error


@dataclass(frozen=True)
class Results:
    """One results folder."""

    folder: Path
    value: dict[str, Any]
    """results.json."""

    @property
    def label(self) -> str:
        """What its model is called: the folder that was measured."""
        return str(self.value["model"].get("path", self.folder))

    def items(self, task: str) -> list[dict[str, Any]]:
        """The items of a task. Raises UserError where the file is missing or is not what was written."""
        entry = self.value["tasks"][task]
        path = self.folder / str(entry["items"])
        if path.resolve().parent != (self.folder / "items").resolve() or not path.is_file():
            raise UserError(f"{path}: the items of '{task}' are not there; measure the model again into {self.folder}")
        if sha256_file(path) != entry["items_sha256"]:
            raise UserError(f"{path}: has changed since it was measured; measure the model again into {self.folder}")
        return [json.loads(line) for line in path.read_bytes().splitlines()]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full disk and the like are one line: JobError."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"{folder}: cannot be written ({error.strerror}); make room or give another --output, and run the command again: "
            "tasks that were finished are kept"
        ) from error


def open_results(path: Path) -> Results:
    """A folder of `codemix eval --output`, or its results.json. Raises UserError."""
    folder = path.parent if path.name == "results.json" else path
    return Results(folder, _finished(folder))


def _finished(folder: Path) -> dict[str, Any]:
    """The finished results of a folder. Raises UserError where there are none, or of another format."""
    path = folder / _RESULTS
    if not path.is_file():
        unfinished = (folder / _UNFINISHED).is_file()
        hint = "it is not finished; run its 'codemix eval' again" if unfinished else "give a folder of 'codemix eval --output'"
        raise UserError(f"{folder}: holds no {_RESULTS}; {hint}")
    value = _read(path)
    if value is None or not isinstance(value.get("model"), dict):
        raise UserError(f"{path}: is no results file of format {FORMAT_VERSION}; measure the model again into {folder}")
    return value


def _read(path: Path) -> dict[str, Any] | None:
    """An earlier results file; None where it is absent, damaged or of another version (it is made anew)."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION or not isinstance(value.get("tasks"), dict):
        return None
    return value
