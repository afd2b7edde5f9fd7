"""The local executor: runs the open stages of every arm as commands, `jobs` arms side by side.

One loop starts, watches and reaps the commands; it never trains anything itself. A failed arm is
reported and the others go on. Stopped at any point, it continues at the first stage that is not done.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    """Bring every arm to its end; returns the failures. Raises UserError when another executor is at work."""
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: at least 1")
    check_evaluation_files(plan)
    with _only_executor(plan) as lock, terminate_like_interrupt():
        queue = {arm.name: _Work(plan, arm, stages) for arm in plan.arms if (stages := open_stages(plan, arm))}
        tokens = sum(work.tokens_left for work in queue.values())
        with progress(f"study {plan.name}", tokens or None, "tokens") as bar:
            return _Loop(list(queue.values()), jobs, lock, bar.advance, total=len(plan.arms)).run()


class _Work:
    """The open stages of one arm and how far its training has come."""

    def __init__(self, plan: StudyPlan, arm: Arm, stages: list[Stage]) -> None:
        self.arm, self.stages = arm, stages
        total, done = arm.schedule["tokens"], 0
        self._counter: TokenCounter | None = None
        if stages[0].name == "train":
            done = total * trained_steps(plan, arm) // arm.schedule["steps"]
            self._counter = TokenCounter(plan.run_folder(arm) / "log.jsonl")
        self._seen = done
        self._total = total
        self.tokens_left = total - done if self._counter else 0

    def new_tokens(self, finished: bool = False) -> int:
        """Target tokens trained since the last call."""
        if self._counter is None:
            return 0
        now = self._total if finished else min(max(self._seen, self._counter.tokens()), self._total)
        gained, self._seen = now - self._seen, now
        return gained


@dataclass
class _Running:
    work: _Work
    stage: Stage
    process: subprocess.Popen[bytes]
    handle: IO[bytes]
    started: float
    slot: int


class _Loop:
    def __init__(self, queue: list[_Work], jobs: int, lock: int, advance: Callable[..., None], total: int) -> None:
        self.queue, self.jobs, self.lock, self.advance, self.total = queue, jobs, lock, advance, total
        self.running: list[_Running] = []
        self.failures: list[Failure] = []
        self.environment = describe_environment()
        self.finished = total - len(queue)

    def run(self) -> list[Failure]:
        try:
            while self.queue or self.running:
                while self.queue and len(self.running) < self.jobs:
                    taken = {item.slot for item in self.running}
                    self._start(self.queue.pop(0), min(slot for slot in range(self.jobs) if slot not in taken))
                time.sleep(_POLL_SECONDS)
                for item in list(self.running):
                    self._watch(item)
        finally:
            self._stop_all()
        return self.failures

    def _start(self, work: _Work, slot: int) -> None:
        stage = work.stages.pop(0)
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
            env=_environment_of(slot, self.jobs),
            pass_fds=(self.lock,),
        )
        self.running.append(_Running(work, stage, process, handle, time.monotonic(), slot))

    def _watch(self, item: _Running) -> None:
        stage = item.stage
        pid, status, usage = os.wait4(item.process.pid, os.WNOHANG)
        training = stage.name == "train"
        note = f"{stage.arm.name}: {stage.name}; {self.finished} of {self.total} models done"
        if pid == 0:
            self.advance(item.work.new_tokens() if training else 0, note)
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
        self.advance(item.work.new_tokens(finished=True) if training else 0, note)
        if item.work.stages:
            self._start(item.work, item.slot)
        else:
            self.finished += 1

    def _stop_all(self) -> None:
        stop([item.process for item in self.running])
        for item in self.running:
            item.handle.close()
            # Time that an interruption cost is part of what the arm took.
            item.stage.record(item.process.returncode or 1, time.monotonic() - item.started, 0.0, 0, self.environment)


def _environment_of(slot: int, jobs: int) -> dict[str, str]:
    """A command's environment: its part of the cores, and of the GPUs that CUDA_VISIBLE_DEVICES lists."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        environment.setdefault(variable, str(max(1, cores // jobs)))
    devices = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if jobs > 1 and len(devices) >= jobs:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot::jobs])
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


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
