"""The local executor: runs the open stages of every arm and twin as commands, `jobs` processes side by side.

One loop starts, watches and reaps the commands; it never trains anything itself. A failed arm is
reported and the others go on. Stopped at any point, it continues at the first stage that is not done.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress
from megatron_codemix.study.environment import describe_environment
from megatron_codemix.study.plan import Arm, StudyPlan
from megatron_codemix.study.processes import stop, terminate_like_interrupt
from megatron_codemix.study.runlog import TokenCounter
from megatron_codemix.study.stages import Stage, check_evaluation_files, stages_of, trained_steps

_POLL_SECONDS = 0.2
_TAIL_LINES = 15
_DEVICE_FILES = Path("/dev")
_PARTS = {"train": 0.8, "audit": 0.02, "convert": 0.08, "eval": 0.1}
"""What each stage counts of its model on the progress bar, so that the time left is not that of training alone: about what it is for
small models on a CPU; the larger the model, the more of it is training."""


@dataclass(frozen=True)
class Failure:
    """A stage that ended with another exit code than 0."""

    arm: str
    stage: str
    returncode: int
    log: Path

    def tell(self) -> str:
        """The failure and the end of its log, for people."""
        end = self.log.read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        cause = f"signal {-self.returncode}" if self.returncode < 0 else f"exit code {self.returncode}"
        return "\n".join([f"{self.arm}: {self.stage} failed with {cause}; the end of {self.log}:", *(f"  | {line}" for line in end)])


def open_stages(plan: StudyPlan, arm: Arm) -> list[Stage]:
    """The stages of an arm from the first that is not done: later ones depend on it."""
    stages = stages_of(plan, arm)
    for index, stage in enumerate(stages):
        if not stage.is_done():
            return stages[index:]
    return []


def execute(plan: StudyPlan, jobs: int = 1) -> list[Failure]:
    """Bring every arm and twin to its end, with at most `jobs` processes at a time; returns the failures.

    A training that takes more processes than that runs alone. Raises UserError when another executor is at work.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1")
    check_evaluation_files(plan)
    with _only_executor(plan) as lock, terminate_like_interrupt():
        waiting = [_Work(plan, arm, stages) for arm in plan.trained if (stages := open_stages(plan, arm))]
        # Only what is left: what an earlier command did would make this one look fast.
        left = sum(work.left for work in waiting)
        with progress(f"study {plan.name}", left or None, "models") as bar:
            return _Loop(waiting, jobs, lock, bar.advance, len(plan.trained)).run()


class _Work:
    """The open stages of one arm and how far it has come."""

    def __init__(self, plan: StudyPlan, arm: Arm, stages: list[Stage]) -> None:
        self.arm, self.stages = arm, stages
        self._tokens = arm.schedule["tokens"]
        self._counter: TokenCounter | None = None
        trained = 0.0
        if stages[0].name == "train":
            trained = trained_steps(plan, arm) / arm.schedule["steps"]
            self._counter = TokenCounter(plan.run_folder(arm) / "log.jsonl")
        self._trained = trained
        self.left = sum(_PARTS[stage.name] for stage in stages) - _PARTS["train"] * trained
        """The part of a model that was still to do at the beginning."""

    @property
    def has_begun(self) -> bool:
        """Whether a stage of it was done, now or in an earlier study."""
        return self.stages[0].name != "train"

    def advance(self, stage: Stage, finished: bool = False) -> float:
        """The part of a model that was done since the last call."""
        part = _PARTS[stage.name] if finished else 0.0
        if stage.name == "train" and self._counter:
            trained = 1.0 if finished else min(max(self._trained, self._counter.tokens() / self._tokens), 1.0)
            part, self._trained = _PARTS["train"] * (trained - self._trained), trained
        return part


@dataclass
class _Running:
    work: _Work
    stage: Stage
    process: subprocess.Popen[bytes]
    handle: IO[bytes]
    started: float
    slots: frozenset[int]


class _Loop:
    def __init__(self, waiting: list[_Work], jobs: int, lock: int, advance: Callable[..., None], total: int) -> None:
        self.waiting, self.jobs, self.lock, self.advance, self.total = waiting, jobs, lock, advance, total
        self.running: list[_Running] = []
        self.failures: list[Failure] = []
        self.environment = describe_environment()
        self.finished = total - len(waiting)

    def run(self) -> list[Failure]:
        try:
            while self.waiting or self.running:
                while work := self._next():
                    self._start(work)
                time.sleep(_POLL_SECONDS)
                for item in list(self.running):
                    self._watch(item)
        finally:
            self._stop_all()
        return self.failures

    def _free(self) -> frozenset[int]:
        return frozenset(range(self.jobs)) - {slot for item in self.running for slot in item.slots}

    def _next(self) -> _Work | None:
        """What to start now: of what fits, that with most processes, or it would have to wait for all others to end at once;
        of those, what has begun. A training larger than `jobs` fits when nothing runs."""
        free = len(self._free())
        fits = [work for work in self.waiting if min(work.stages[0].processes, self.jobs) <= free]
        return max(fits, key=lambda work: (work.stages[0].processes, work.has_begun), default=None)

    def _start(self, work: _Work) -> None:
        self.waiting.remove(work)
        stage = work.stages.pop(0)
        slots = frozenset(sorted(self._free())[: stage.processes])
        stage.log.parent.mkdir(parents=True, exist_ok=True)
        command = stage.prepare()
        handle = open(stage.log, "ab")  # noqa: SIM115 - closed when the command is reaped
        handle.write(f"$ {' '.join(command)}\n".encode())
        handle.flush()
        # The children inherit the lock: while a trainer outlives a killed executor, no second one starts beside it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=_environment_of(slots, stage.processes, self.jobs),
            pass_fds=(self.lock,),
        )
        self.running.append(_Running(work, stage, process, handle, time.monotonic(), slots))

    def _watch(self, item: _Running) -> None:
        stage = item.stage
        pid, status, usage = os.wait4(item.process.pid, os.WNOHANG)
        note = f"{self.finished} of {self.total} done; {stage.arm.name}: {stage.name}"
        if pid == 0:
            self.advance(item.work.advance(stage), note)
            return
        returncode = item.process.returncode = os.waitstatus_to_exitcode(status)
        item.handle.close()
        self.running.remove(item)
        if returncode == 0 and not stage.output_exists():
            returncode = 1
            with open(stage.log, "ab") as handle:
                handle.write(f"codemix study: {stage.name} ended with exit code 0 but its output is not there\n".encode())
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        stage.record(returncode, time.monotonic() - item.started, usage.ru_utime + usage.ru_stime, peak, self.environment)
        if returncode:
            self.failures.append(Failure(stage.arm.name, stage.name, returncode, stage.log))
            print(f"{stage.arm.name}: {stage.name} failed, the other arms go on; see {stage.log}", file=sys.stderr, flush=True)
            return
        self.advance(item.work.advance(stage, finished=True), note)
        if item.work.stages:
            self.waiting.append(item.work)
        else:
            self.finished += 1

    def _stop_all(self) -> None:
        stop([item.process for item in self.running])
        for item in self.running:
            item.handle.close()
            # Time that an interruption cost is part of what the arm took.
            item.stage.record(item.process.returncode or 1, time.monotonic() - item.started, 0.0, 0, self.environment)


def _environment_of(slots: Collection[int], processes: int, jobs: int) -> dict[str, str]:
    """A command's environment: each of its processes' part of the cores, and its part of the GPUs."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        environment.setdefault(variable, str(max(1, cores // max(jobs, processes))))
    devices = _devices(environment)
    if jobs > 1 and devices:
        mine = {slot % len(devices) for slot in slots}  # several commands share one where there are more
        mine |= {index for index in range(len(devices)) if index % jobs in slots}
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index] for index in sorted(mine))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _devices(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES lists; where it is not set, all that are here."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [device for device in environment["CUDA_VISIBLE_DEVICES"].split(",") if device]
    return [str(number) for number in range(len(list(_DEVICE_FILES.glob("nvidia[0-9]*"))))]


@contextmanager
def _only_executor(plan: StudyPlan) -> Iterator[int]:
    """Hold the study's lock; yields its file descriptor."""
    plan.output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(plan.output / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{plan.output}: another 'codemix study run', or a trainer it left, is at work here; wait for it or stop it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)
