"""Job arrays: units of work with a record each, so that what failed is submitted again alone.

A **unit** is one `codemix` command. Whoever runs it, a task of a job array or a shell, leaves FOLDER/units/NAME.json behind: its
exit code, and a key of everything that it was made from. A unit is done when its record says so under the key that it has now.
**Steps** follow each other; each is a job of its own, an array where it has several units. `plan_submissions` is the pure part:
which tasks of which steps are missing, and what each job waits for.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_codemix import worker
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_json, write_json
from megatron_codemix.progress import say

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Unit:
    """One `codemix` command of a step."""

    name: str
    """Names its record; of its own among all units of the folder."""
    command: tuple[str, ...]
    """Words behind `codemix`."""
    settings: str = ""
    """What decides the result beside the command's words: contents of a configuration."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that it reads; sizes and times of the files right in them are part of its key."""
    product: Path | None = None
    """What must be there for it to be done."""

    def key(self) -> str:
        """Of everything that the unit is made from, cheap to tell: no file is read."""
        return sha256_json([list(self.command), self.settings, [_looks_of(path) for path in self.inputs]])


def _looks_of(path: Path) -> list[Any]:
    """[path, [[name, size, time], …]] of a file, or of the files in a folder; empty where nothing is."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files if file.is_file()]
    except OSError:
        stats = []
    return [str(path), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]


def record_path(folder: Path, unit: Unit) -> Path:
    """Where a unit leaves word."""
    return folder / "units" / f"{unit.name}.json"


def read_record(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """What the unit's last run left; None where there is nothing that can be read, or it was made from something else."""
    try:
        record = json.loads(record_path(folder, unit).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION
    return record if whole and record.get("key") == unit.key() else None


def is_done(folder: Path, unit: Unit) -> bool:
    """Whether a unit need not run again."""
    record = read_record(folder, unit)
    return record is not None and record.get("returncode") == 0 and (unit.product is None or unit.product.exists())


def run_unit(folder: Path, unit: Unit, extra: Sequence[str] = ()) -> int:
    """Run a unit, and leave word of it; returns its exit code.

    One that is done runs too: its command looks closer than a key does, and keeps what is there already. extra: words of its command
    that decide no result, such as how many processes share the work.
    """
    key = unit.key()
    record_path(folder, unit).unlink(missing_ok=True)  # a run that is killed leaves none
    say(f"{unit.name}: codemix {' '.join([*unit.command, *extra])}")
    begun = time.time()
    returncode = subprocess.run([*worker.codemix_command(), *unit.command, *extra], check=False).returncode
    leave_word(folder, unit, key, returncode, begun)
    return returncode if returncode >= 0 else 128 - returncode


_IDENTITY = {"job": "SLURM_JOB_ID", "array": "SLURM_ARRAY_JOB_ID", "task": "SLURM_ARRAY_TASK_ID", "restart": "SLURM_RESTART_COUNT"}
"""Field of a record → where Slurm says it; null outside of a job."""


def leave_word(folder: Path, unit: Unit, key: str, returncode: int, begun: float) -> None:
    """Write a unit's record. key: of what it was made from, taken before it began; begun: in seconds since 1970."""
    identity = {name: os.environ.get(variable) for name, variable in _IDENTITY.items()}
    seconds = {"begun": begun, "seconds": round(time.time() - begun, 3)}
    content = {"format_version": FORMAT_VERSION, "key": key, "returncode": returncode, "host": socket.gethostname(), **seconds, **identity}
    write_json(record_path(folder, unit), content)


def own_units(units: Sequence[Unit], environment: Mapping[str, str]) -> list[Unit]:
    """The unit of this task of a job array; all of them where there is no array. Raises UserError for a number too high."""
    number = environment.get("SLURM_ARRAY_TASK_ID")
    if number is None:
        return list(units)
    if not number.isdigit() or int(number) >= len(units):
        raise UserError(f"SLURM_ARRAY_TASK_ID={number}: there are {len(units)} units of work; submit with --array=0-{len(units) - 1}")
    return [units[int(number)]]


def run_units(folder: Path, units: Sequence[Unit], extra: Sequence[str] = ()) -> int:
    """Run units one after the other, also behind one that fails; returns the first exit code that is not 0."""
    codes = [run_unit(folder, unit, extra) for unit in units]
    return next((code for code in codes if code), 0)


@dataclass(frozen=True)
class Step:
    """What one job does."""

    name: str
    units: tuple[Unit, ...]
    arguments: tuple[str, ...]
    """Words behind the batch script."""
    after: Literal["ok", "any"] = "ok"
    """Whether it waits for the step before to succeed, or only to end."""
    light: bool = False
    """It computes nothing: a core will do, and no GPU."""


@dataclass(frozen=True)
class Submission:
    """One job to be submitted."""

    step: Step
    tasks: tuple[int, ...]
    """Indices of the units that are missing, in order."""
    waits_for: tuple[str, ...] = ()
    """Jobs and tasks in the queue already (`12`, `12_3`) that it waits for."""
    behind: int | None = None
    """Index of the submission of this very list that it waits for."""

    def options(self, submitted: Sequence[str], at_once: int | None = None) -> dict[str, str]:
        """sbatch's options for its array and its dependency; submitted: ids of the jobs of the submissions before it."""
        found = {}
        if len(self.step.units) > 1:
            found["array"] = as_ranges(self.tasks) + (f"%{at_once}" if at_once else "")
        waits = [*self.waits_for, *([submitted[self.behind]] if self.behind is not None else [])]
        if waits:
            found["dependency"] = f"after{self.step.after}:{':'.join(waits)}"
            found["kill-on-invalid-dep"] = "yes"  # what can no longer come true would wait for ever
        return found


def as_ranges(tasks: Iterable[int]) -> str:
    """Task numbers as sbatch's --array takes them: 0-3,7,9-10."""
    runs: list[list[int]] = []
    for task in sorted(tasks):
        if runs and task == runs[-1][1] + 1:
            runs[-1][1] = task
        else:
            runs.append([task, task])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


Open = Mapping[str, Mapping[int, str]]
"""Step → index of a unit → what waits or runs for it in the queue (`12`, `12_3`)."""


def plan_submissions(steps: Sequence[Step], done: Mapping[str, Collection[int]], still_open: Open) -> list[Submission]:
    """The jobs that bring all steps to their end, without doing again what is done, or is in the queue.

    done: step → indices of its finished units. Behind the first step of which something is missing, the later ones are submitted
    whole: what they were made from is made again, and jobs of theirs in the queue wait for what has failed.
    """
    submissions: list[Submission] = []
    waits: tuple[str, ...] = ()
    for step in steps:
        in_queue = still_open.get(step.name, {})
        kept = set(in_queue) | set(done.get(step.name, ())) if not submissions else set()
        missing = tuple(index for index in range(len(step.units)) if index not in kept)
        if missing:
            earlier = waits
            if step.after == "any" and submissions:  # two of them at once would write into one place
                earlier = (*waits, *dict.fromkeys(in_queue.values()))
            submissions.append(Submission(step, missing, earlier, len(submissions) - 1 if submissions else None))
        if len(submissions) <= 1:
            opened = [job for index, job in sorted(in_queue.items()) if index not in done.get(step.name, ())]
            waits = tuple(dict.fromkeys(opened)) or (() if missing else waits)
        else:
            waits = ()
    return submissions
