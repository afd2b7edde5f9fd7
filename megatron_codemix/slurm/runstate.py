"""How far a run is, read from its folder: a bounded piece of the log's end, and small files. Works without Slurm, at any moment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_codemix.slurm.chain import CHAIN_NAME, FINISHED_NAME, FOLDER, newest_step

_TAIL_BYTES = 1 << 18
"""Of the log: some hundred steps."""
_PLAN_BYTES = 1 << 24
"""A plan file larger than this is not read for its number of steps: the log's first line has it too."""
_RECENT = 20
"""Steps whose median speed is shown."""


@dataclass(frozen=True)
class RunState:
    """What a run's files say of it; None: they do not say."""

    folder: Path
    step: int | None
    """Updates made, by the newest line of the log."""
    num_steps: int | None
    loss: float | None
    """Nats per target token, of the newest step."""
    tokens_per_second: float | None
    """Median of the last steps."""
    seconds_left: float | None
    """By the wall-clock time of the last steps, validations and saves among them."""
    last_line: float | None
    """When the log's newest line was written, in seconds since 1970."""
    attempt: int | None
    checkpoint: int | None
    """Step of the newest checkpoint."""
    finished: bool
    why: str
    """What the newest start in a job ended with, if it has ended."""

    def as_json(self) -> dict[str, Any]:
        """For `codemix jobs --json`."""
        return {**self.__dict__, "folder": str(self.folder)}


def run_state(folder: Path) -> RunState:
    """Read a run folder; what is missing or damaged is None. Never more than some megabytes are read."""
    lines = tail(folder / "log.jsonl")
    steps = _steps(lines)
    newest = steps[-1] if steps else {}
    step = _integer(newest.get("step"))
    num_steps = _num_steps(folder, lines)
    speeds = [line["tokens_per_second"] for line in steps[-_RECENT:] if isinstance(line.get("tokens_per_second"), (int, float))]
    finished = (folder / FINISHED_NAME).is_file()
    each = _seconds_per_step(steps)
    attempt = _read(folder / "attempt.json", _PLAN_BYTES).get("attempt")
    return RunState(
        folder=folder,
        step=step,
        num_steps=num_steps,
        loss=newest.get("loss"),
        tokens_per_second=median(speeds) if speeds else None,
        seconds_left=None if finished or each is None or step is None or num_steps is None else each * max(num_steps - step, 0),
        last_line=max((line["time"] for line in lines if isinstance(line.get("time"), (int, float))), default=None),
        attempt=attempt if isinstance(attempt, int) else None,
        checkpoint=newest_step(folder) or None,
        finished=finished,
        why=_why(folder),
    )


def tail(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log's last lines, in order; empty without one. A line that a process is writing is passed over."""
    try:
        with open(path, "rb") as handle:
            end = handle.seek(0, os.SEEK_END)
            begin = max(end - _TAIL_BYTES, 0)
            handle.seek(begin)
            content = handle.read(_TAIL_BYTES)
    except OSError:
        return []
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [line for text in (lines[1:] if begin else lines) if (line := _parsed(text))]


def _steps(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The step lines that count: those behind a "start" or "rewind" line withdraw the earlier ones above its first step."""
    steps: list[dict[str, Any]] = []
    for line in lines:
        if line.get("kind") in ("start", "rewind"):
            first = _integer(line.get("first_step")) or 0
            # behind it the clock begins anew: what lay between was no training
            steps = [{**old, "time": None} for old in steps if (_integer(old.get("step")) or 0) <= first]
        elif line.get("kind") == "step":
            steps.append(line)
    return steps


def _seconds_per_step(steps: list[dict[str, Any]]) -> float | None:
    timed = [line for line in steps if isinstance(line.get("time"), (int, float)) and isinstance(line.get("step"), int)]
    if len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
        seconds = [line["seconds"] for line in steps[-_RECENT:] if isinstance(line.get("seconds"), (int, float))]
        return median(seconds) if seconds else None
    return (timed[-1]["time"] - timed[0]["time"]) / (timed[-1]["step"] - timed[0]["step"])


def _num_steps(folder: Path, lines: list[dict[str, Any]]) -> int | None:
    starts = [found for line in lines if line.get("kind") == "start" and (found := _integer(line.get("num_steps"))) is not None]
    return starts[-1] if starts else _integer(_read(folder / "plan.json", _PLAN_BYTES).get("num_steps"))


def _why(folder: Path) -> str:
    lines = tail(folder / FOLDER / CHAIN_NAME)
    return str(lines[-1].get("why", "")) if lines and lines[-1].get("kind") == "end" else ""


def _read(path: Path, most: int) -> dict[str, Any]:
    try:
        if path.stat().st_size > most:
            return {}
        return _parsed(path.read_bytes())
    except OSError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
