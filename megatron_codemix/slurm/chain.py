"""Whether a start of a job is followed by another one: a rule over what lies in the run folder, and what the batch shell asks of it.

    python -m megatron_codemix.slurm.chain --run RUN --job 12 --restart 0 --chain 12 --code 1 --stopped 0 --cancelled 0 --max-restarts 3

prints one line that says why, and leaves with 0 (the run is finished), 2 (its input is wrong), 75 (start it again), 143
(cancelled) or the code of the failure. It starts in a fraction of a second, when a node may have little time left, and so
imports next to nothing. `slurm/begin.py` writes what it reads: RUN/slurm/chain.jsonl, a line when a start begins, one when it ends.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError, printable

FOLDER = "slurm"
"""Of a run folder: what Slurm's jobs of the run leave there."""
CHAIN_NAME = "chain.jsonl"
FINISHED_NAME = "finished.json"
AGAIN, CANCELLED, REFUSED = 75, 143, 2
"""Exit codes of a start: followed by another, ended by Slurm, wrong input."""
MOST_STOPS = 10
"""Starts in a row that may be stopped before they save anything: more means that the time limit is too short for one step."""
_STEP_NAME = re.compile(r"step-(\d{8,})")
_LINE_BYTES = 1000


@dataclass(frozen=True)
class Ending:
    """How a start ended, as far as it can be seen from outside."""

    finished: bool
    """The run's marker is there."""
    refused: str
    """What the trainer said of its input; empty: nothing."""
    cancelled: bool
    """TERM came: scancel, a time limit, preemption. Slurm has decided."""
    stopped: bool
    """USR1 came: before the time limit, or preemption."""
    code: int
    """Exit code of srun."""
    begun_at: int
    """Step of the newest checkpoint when the start began; 0: none."""
    step: int
    """Step of the newest checkpoint now."""
    superseded: bool = False
    """A later start of the chain has begun: Slurm took this one's node for lost, and it was not."""


@dataclass(frozen=True)
class Verdict:
    """What comes next."""

    kind: Literal["superseded", "finished", "cancelled", "refused", "stopped", "failed"]
    again: bool
    exit_code: int
    why: str


@dataclass(frozen=True)
class Fruitless:
    """Starts in a row, up to the last one, that ended without a newer checkpoint."""

    failures: int = 0
    stops: int = 0


def decide(ending: Ending, before: Fruitless, max_restarts: int) -> Verdict:
    """The rule. before: of the starts before this one."""
    if ending.superseded:
        return Verdict("superseded", False, 1, "another start of this job has taken over: nothing more is done from here")
    if ending.finished:
        return Verdict("finished", False, 0, "finished")
    if ending.cancelled:
        return Verdict("cancelled", False, CANCELLED, "ended by Slurm: it is not started again from here")
    if ending.refused:
        return Verdict("refused", False, REFUSED, f"not started again, since it would end as it did: {ending.refused}")
    progress = ending.step > ending.begun_at
    saved = f"the newest checkpoint is that of step {ending.step:,}" if ending.step else "there is no checkpoint yet"
    if ending.stopped:
        stops = 0 if progress else before.stops + 1
        if stops > MOST_STOPS:
            why = f"stopped {stops} times in a row before anything was saved ({saved}): raise the time limit, or signal_seconds"
            return Verdict("stopped", False, 1, why)
        return Verdict("stopped", True, AGAIN, f"stopped in time; {saved}; starts again")
    code = ending.code or 1
    failures = 0 if progress else before.failures + 1
    if failures > max_restarts:
        times = f"{failures} times in a row" if failures > 1 else "and max_restarts is 0"
        left_with = 1 if code in (AGAIN, CANCELLED, REFUSED) else code  # the shell would take these for words of ours
        return Verdict("failed", False, left_with, f"failed (exit code {code}), {times} without a newer checkpoint; {saved}; given up")
    count = f"restart {failures} of {max_restarts} without a newer checkpoint" if failures else "a newer checkpoint was made meanwhile"
    return Verdict("failed", True, AGAIN, f"failed (exit code {code}); {saved}; starts again ({count})")


def fruitless(lines: Sequence[dict[str, Any]], now: int) -> Fruitless:
    """Count over a chain's lines, of the starts that have been before; now: the newest checkpoint's step when the present one began.

    A start without an end line (its node was lost, Slurm started it again) counts as neither failure nor stop.
    """
    starts: list[dict[str, Any]] = []
    for line in lines:
        if line.get("kind") == "begin":
            if line.get("restart") == 0 and line.get("job") == line.get("chain"):
                starts = []  # what lies before is of another job that had this id
            starts.append({"begun_at": _number(line.get("step")), "who": (line.get("job"), line.get("restart"))})
        elif line.get("kind") == "end" and starts and starts[-1]["who"] == (line.get("job"), line.get("restart")):
            starts[-1]["how"] = line.get("how")
    failures = stops = 0
    after = now
    for start in reversed(starts):
        if after > start["begun_at"]:
            break
        failures += start.get("how") == "failed"
        stops += start.get("how") == "stopped"
        after = start["begun_at"]
    return Fruitless(failures, stops)


def newest_step(run: Path) -> int:
    """Step of the newest checkpoint in a run folder, by its name; 0 where there is none."""
    try:
        names = [entry.name for entry in os.scandir(run / "checkpoints")]
    except OSError:
        return 0
    return max((int(found[1]) for found in map(_STEP_NAME.fullmatch, names) if found), default=0)


def read_chain(run: Path, chain: str) -> list[dict[str, Any]]:
    """Lines of RUN/slurm/chain.jsonl that belong to a chain; damaged ones are passed over."""
    try:
        content = (run / FOLDER / CHAIN_NAME).read_bytes()
    except OSError:
        return []
    found = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("chain") == chain:
            found.append(line)
    return found


def append(run: Path, line: dict[str, Any]) -> None:
    """Add one line to RUN/slurm/chain.jsonl, by one write; `time` is added. Raises OSError."""
    text = json.dumps({**line, "time": time.time()}, ensure_ascii=False)
    descriptor = os.open(run / FOLDER / CHAIN_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = os.fstat(descriptor).st_size
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        os.write(descriptor, b"\n" * torn + text.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused_file(run: Path, job: str, restart: int) -> Path:
    """Where the trainer of a start writes what it says of wrong input (worker.REFUSED_FILE names it)."""
    return run / FOLDER / f"refused.{job}.{restart}"


def stop_file(run: Path, job: str, restart: int) -> Path:
    """What the batch shell of a start makes to have the trainer save and leave."""
    return run / FOLDER / f"stop.{job}.{restart}"


def _is_there(path: Path) -> bool:
    """Asked of the folder's list: NFS may remember for a minute that a single file was not there."""
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return False


def _refusal(path: Path) -> str:
    if not _is_there(path):
        return ""
    try:
        with open(path, "rb") as handle:
            return printable(handle.read(_LINE_BYTES).decode("utf-8", "replace"))
    except OSError:
        return ""


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """What the batch shell calls at the end of a start; returns its exit code. Notes the end in the chain."""
    parser = ArgumentParser(prog="python -m megatron_codemix.slurm.chain", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--restart", type=int, required=True, help="which start of the job, 0 for the first")
    parser.add_argument("--chain", required=True, help="id of the first job of the chain")
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--stopped", type=int, choices=(0, 1), required=True, help="whether USR1 came")
    parser.add_argument("--cancelled", type=int, choices=(0, 1), required=True, help="whether TERM came")
    parser.add_argument("--max-restarts", type=int, required=True, help="failures in a row without a newer checkpoint, at most")
    parser.add_argument("--refused", default="", metavar="LINE", help="why no other start could train, as preflight says it")
    given = parser.parse_args(argv)

    lines, step = read_chain(given.run, given.chain), newest_step(given.run)
    begun = [index for index, line in enumerate(lines) if line.get("kind") == "begin"]
    ours = [index for index in begun if (lines[index].get("job"), lines[index].get("restart")) == (given.job, given.restart)]
    present = ours[-1] if ours else len(lines)
    begun_at = _number(lines[present].get("step")) if ours else 0
    ending = Ending(
        finished=_is_there(given.run / FINISHED_NAME),
        refused=given.refused or _refusal(refused_file(given.run, given.job, given.restart)),
        cancelled=bool(given.cancelled),
        stopped=bool(given.stopped),
        code=given.code,
        begun_at=begun_at,
        step=step,
        superseded=bool(ours) and begun[-1] > present,
    )
    verdict = decide(ending, fruitless(lines[:present], begun_at), given.max_restarts)
    facts = {"job": given.job, "restart": given.restart, "how": verdict.kind, "again": verdict.again, "why": verdict.why}
    print(verdict.why)
    try:
        append(given.run, {"kind": "end", "chain": given.chain, **facts, "exit_code": given.code, "step": step})
    except OSError as error:  # a full disk: what comes next is decided all the same
        print(f"warning: {given.run / FOLDER / CHAIN_NAME}: cannot be written ({error.strerror})", file=sys.stderr)
    return verdict.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(*(f"codemix: {line}" for line in error.problems), sep="\n", file=sys.stderr)
        sys.exit(1)
