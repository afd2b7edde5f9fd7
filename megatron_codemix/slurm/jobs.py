"""`codemix jobs`: what Slurm says of our jobs, and what their folders say of the work."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.progress import say
from megatron_codemix.slurm.chain import FOLDER
from megatron_codemix.slurm.runstate import RunState, run_state
from megatron_codemix.slurm.sending import submissions_in
from megatron_codemix.slurm.squeue import Job, has_slurm, queue

_DESCRIPTION = """Jobs that `codemix submit` has submitted: those in the queue, or those of the named folders, also when they have ended.

  codemix jobs                     all of yours that are in the queue
  codemix jobs runs/first          one run; also without Slurm
  codemix jobs runs/* --json       a JSON object a line

A folder is a run's, or OUTPUT or OUTPUT.slurm of `codemix submit prep` and `evaluate`."""

_HEADINGS = ("job", "name", "state", "nodes", "attempt", "step", "loss", "tokens/s", "left", "checkpoint", "last line", "why")
_STATES = {"PENDING": "waiting", "COMPLETED": "done", "REQUEUED": "requeued", "REQUEUE_HOLD": "held", "CONFIGURING": "starting"}
"""Slurm's word → ours, where lower case is not enough."""


@dataclass(frozen=True)
class Tasks:
    """How far the units of a submission are, by the records that they leave behind."""

    done: int
    all: int
    failed: tuple[str, ...]
    """Names of units."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a job or a whole array, or a run that no job works on."""

    folder: Path
    kind: str
    name: str
    jobs: tuple[Job, ...]
    run: RunState | None
    """Of a training run."""
    tasks: Tasks | None = None
    """Of any other work."""

    @property
    def state(self) -> str:
        """In words; of an array how many tasks are in which state."""
        counts = Counter(_words(job.state) for job in self.jobs)
        if len(counts) == 1 and len(self.jobs) == 1:
            return next(iter(counts))
        if counts:
            return ", ".join(f"{number} {state}" for state, number in counts.most_common())
        if self.run is None or self.run.finished:
            return "finished" if self.run else "ended"
        return "not in the queue"

    @property
    def why(self) -> str:
        """Why it waits, or what the newest start ended with."""
        reasons = dict.fromkeys(job.reason for job in self.jobs if job.state == "PENDING" and job.reason not in ("None", ""))
        if self.tasks is not None and self.tasks.failed:
            reasons[f"failed: {', '.join(self.tasks.failed)}"] = None
        return ", ".join(reasons) or (self.run.why if self.run is not None else "")

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        jobs = [{name: value for name, value in job.__dict__.items() if name != "comment"} for job in self.jobs]
        tasks = asdict(self.tasks) if self.tasks else None
        run = self.run.as_json() if self.run else None
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "name": self.name,
            "state": self.state,
            "jobs": jobs,
            "tasks": tasks,
            "run": run,
        }


def _words(state: str) -> str:
    return _STATES.get(state, state.lower().replace("_", " "))


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises UserError for folders that are none of ours, JobError where Slurm does not answer."""
    parser = ArgumentParser(prog="codemix jobs", description=_DESCRIPTION)
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="runs, or outputs of `codemix submit prep` and `evaluate`")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    arguments = parser.parse_intermixed_args(list(argv))
    works = [work for folder in arguments.folders for work in _works_of(folder)]
    if has_slurm():
        jobs = _asked(bool(works))
    elif works:
        jobs = []
        say("squeue is not on the PATH: this is what the folders say")
    else:
        raise UserError("squeue is not on the PATH; run this on a machine of the cluster, or name run folders")
    rows = list(_rows(jobs, works))
    if arguments.json:
        for row in rows:
            print(json.dumps(row.as_json(), ensure_ascii=False))
    else:
        print(_table(rows) if rows else "none of your jobs in the queue was submitted by codemix")
    return 0


def _asked(named: bool) -> list[Job]:
    """The queue. Where folders are named it is not needed: Slurm that does not answer is said, no error."""
    try:
        return queue()
    except JobError as error:
        if not named:
            raise
        say(f"{error}; this is what the folders say")
        return []


def _works_of(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of what a named folder may hold. Raises UserError where it is nothing of ours."""
    beside = folder.with_name(f"{folder.name}.slurm")
    found: list[tuple[str, Path]] = []
    if any((folder / name).exists() for name in ("log.jsonl", "plan.json", FOLDER)):
        found.append(("train", folder.absolute()))
        found += [(_kind_of(inner), inner.absolute()) for inner in sorted(folder.glob("*.slurm")) if submissions_in(inner)]
        found += [("convert", (folder / FOLDER).absolute())] if _kinds_in(folder / FOLDER) & {"convert"} else []
    for place in (folder, beside):
        if place.name.endswith(".slurm") and place.is_dir():
            found.append((_kind_of(place), place.absolute()))
    if not found:
        raise UserError(f"{folder}: neither a run nor the output of a submission; give the 'output' of a run, or of 'codemix submit'")
    return found


def _kinds_in(folder: Path) -> set[str]:
    return {str(one.get("kind")) for one in submissions_in(folder)}


def _kind_of(folder: Path) -> str:
    kinds = [str(one.get("kind")) for one in submissions_in(folder)]
    return kinds[-1] if kinds else "array"


def _rows(jobs: Iterable[Job], works: Sequence[tuple[str, Path]]) -> Iterator[Row]:
    """A row for every job or array; for a named folder without one in the queue too."""
    grouped: dict[tuple[str, Path], dict[str, list[Job]]] = {work: {} for work in works}
    for job in jobs:
        if job.work is None:
            continue
        key = (job.work[0], Path(job.work[1]))
        if key in grouped or not works:
            grouped.setdefault(key, {}).setdefault(job.array, []).append(job)
    for (kind, folder), arrays in grouped.items():
        if not works and not any(job.is_open for found in arrays.values() for job in found):
            continue
        yield from (_training if kind == "train" else _steps)(kind, folder, arrays, bool(works))


def _training(kind: str, folder: Path, arrays: dict[str, list[Job]], named: bool) -> Iterator[Row]:
    """The jobs of a run that are in the queue; else the newest that Slurm remembers, or the run alone."""
    state = run_state(folder)
    current = {array: found for array, found in arrays.items() if any(job.is_open for job in found)}
    shown = current or dict(sorted(arrays.items(), key=lambda one: int(one[0]))[-1:])
    for found in shown.values():
        yield Row(folder, kind, found[0].name, tuple(found), state)
    if not shown:
        yield Row(folder, kind, folder.name, (), state)


def _steps(kind: str, folder: Path, arrays: dict[str, list[Job]], named: bool) -> Iterator[Row]:
    """The newest submission of each step; where no folder was named, those in the queue."""
    newest = {str(one.get("step")): one for one in submissions_in(folder) if one.get("kind") == kind}
    for one in sorted(newest.values(), key=lambda one: one.get("submitted", 0.0)):
        found = arrays.get(one["job"], [])
        if named or any(job.is_open for job in found):
            yield Row(folder, kind, str(one.get("name")), tuple(found), None, _tasks(folder, one.get("units")))


def _tasks(folder: Path, names: object) -> Tasks | None:
    """Of a submission; names: of its units."""
    if not isinstance(names, list):
        return None
    codes = {str(name): _returncode(folder / "units" / f"{name}.json") for name in names}
    return Tasks(list(codes.values()).count(0), len(codes), tuple(name for name, code in codes.items() if code not in (0, None)))


def _returncode(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_bytes())["returncode"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _table(rows: Sequence[Row]) -> str:
    cells = [_HEADINGS, *(_cells(row, time.time()) for row in rows)]
    kept = [column for column in zip(*cells) if any(cell not in ("", "–") for cell in column[1:])]
    widths = [max(map(len, column)) for column in kept]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in zip(*kept))


def _cells(row: Row, now: float) -> tuple[str, ...]:
    run, first = row.run, row.jobs[0] if row.jobs else None
    step = f"{row.tasks.done:,}/{row.tasks.all:,} tasks" if row.tasks else "–"
    if run is not None and run.step is not None:
        step = f"{run.step:,}/{run.num_steps:,}" if run.num_steps is not None else f"{run.step:,}"
    running = any(job.state == "RUNNING" for job in row.jobs)
    return (
        ", ".join(dict.fromkeys(job.array for job in row.jobs)) or "–",
        row.name,
        row.state,
        first.nodes if first else "–",
        _shown(run.attempt if run else None),
        step,
        f"{run.loss:.4f}" if run and isinstance(run.loss, (int, float)) else "–",
        f"{run.tokens_per_second:,.0f}" if run and run.tokens_per_second is not None else "–",
        duration(run.seconds_left) if run and run.seconds_left is not None else "–",
        f"step {run.checkpoint:,}" if run and run.checkpoint is not None else "–",
        f"{duration(now - run.last_line)} ago" if run and running and run.last_line is not None else "–",
        row.why,
    )


def _shown(value: int | None) -> str:
    return "–" if value is None else str(value)


def duration(seconds: float) -> str:
    """In the two largest units: 3 d 4 h, 12 min 5 s."""
    left = max(round(seconds), 0)
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])
