"""What Slurm has in its queue, by `squeue -h -o`: no accounting database is asked, no JSON plug-in is needed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_codemix.errors import JobError

_SEPARATOR = "\x1f"
_FIELDS = {
    "array": "%F",
    "task": "%K",
    "state": "%T",
    "reason": "%r",
    "nodes": "%D",
    "name": "%j",
    "submitted": "%V",
    "started": "%S",
    "ends": "%e",
    "node_list": "%N",
    "comment": "%k",
}
"""Field of `Job` → squeue's letter; the last one may hold anything."""

_SECONDS = 30.0
"""squeue is given this long: a controller that is restarted answers late, one that is gone never."""

_ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "SPECIAL_EXIT", "TIMEOUT")
)
"""States in which a job stays in squeue's list for some minutes. PREEMPTED is none: the job may be requeued."""


@dataclass(frozen=True)
class Job:
    """A job of the queue, or one task of a job array; every field as squeue prints it."""

    array: str
    """Job id; of a task, that of its array."""
    task: str
    """Number within the array; "N/A" without one."""
    state: str
    reason: str
    nodes: str
    name: str
    submitted: str
    started: str
    ends: str
    node_list: str
    comment: str
    """`codemix submit` writes `codemix KIND FOLDER`."""

    @property
    def index(self) -> int | None:
        """The task's number, or None where the job is no array."""
        return int(self.task) if self.task.isdigit() else None

    @property
    def id(self) -> str:
        """As scontrol, scancel and dependencies take it: 12, or 12_3."""
        return self.array if self.index is None else f"{self.array}_{self.index}"

    @property
    def work(self) -> tuple[str, str] | None:
        """(kind, folder) of a job of ours; None of any other."""
        words = self.comment.split(" ", 2)
        return (words[1], words[2]) if len(words) == 3 and words[0] == "codemix" else None

    @property
    def is_open(self) -> bool:
        """Whether it waits, runs or may run again."""
        return self.state not in _ENDED


def has_slurm() -> bool:
    """Whether squeue is on the PATH."""
    return shutil.which("squeue") is not None


def queue(jobs: Iterable[str] | None = None) -> list[Job]:
    """The caller's jobs, a line for each task of an array; jobs: only these ids, whoever's they are.

    Raises JobError where Slurm does not answer. Ids that it no longer knows are left out without a word.
    """
    form = _SEPARATOR.join(_FIELDS.values())
    wanted = None if jobs is None else set(jobs)
    if wanted is not None and not wanted:
        return []
    # asked for by id, squeue fails for a single one that it has forgotten: the whole list is not long
    output = _asked(["squeue", "-h", "-r", "-t", "all", "-o", form, *(["--me"] if wanted is None else [])])
    found = [job for line in output.splitlines() if (job := _parsed(line)) is not None]
    return [job for job in found if wanted is None or job.array in wanted]


def _asked(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise JobError(f"squeue has not answered for {_SECONDS:.0f} s; Slurm's controller may be down: try again later") from None
    except OSError as error:
        raise JobError(f"squeue cannot be run ({error.strerror}); work on a machine of the cluster") from None
    if done.returncode:
        raise JobError(f"squeue failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _parsed(line: str) -> Job | None:
    words = line.split(_SEPARATOR, len(_FIELDS) - 1)
    return Job(**dict(zip(_FIELDS, words))) if len(words) == len(_FIELDS) else None
