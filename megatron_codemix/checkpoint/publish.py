"""Saving while training goes on: the one save of a run that may be in flight, and its publication.

    saver.begin(state, engine.pieces())              # copies them to host memory: the only time that training waits
    while training:
        busy, failed = ranks.any_of(*saver.flags)    # at the end of each step, on every rank
        outcome = saver.poll(busy, failed)           # None, Saved(…) or Dropped(…)
    outcome = saver.finish()                         # waits for what is still in flight

A save is a chain of phases. In each, every rank works in a thread of its own, which touches files alone: no GPU, no
collective. The ranks go on to the next phase together, once all of their threads have ended:

 1. each rank writes its pieces and reads them back;
 2. neutral form only: each rank writes its share of the whole tensors, from the files of phase 1;
 3. the main rank writes the rest, renames the folder and deletes what is not to be kept.

Where a rank's disk refuses, all ranks drop the save and the folder goes; what was published before is untouched.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_codemix.checkpoint.phases import Files, Work, await_files, told, write_routine, write_whole
from megatron_codemix.checkpoint.ranks import Ranks
from megatron_codemix.checkpoint.record import NEUTRAL, ROUTINE, Form
from megatron_codemix.checkpoint.retention import doomed
from megatron_codemix.checkpoint.snapshot import Snapshot
from megatron_codemix.checkpoint.state import State, write_state
from megatron_codemix.checkpoint.store import discard, prepare_store, step_folder, step_folders, step_of
from megatron_codemix.config import CheckpointConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import fsync_directory
from megatron_codemix.pieces import Piece


@dataclass(frozen=True)
class Saved:
    """A published checkpoint."""

    step: int
    folder: Path
    form: Form
    seconds: float
    """From its beginning to its publication."""
    stall_seconds: float
    """How long training waited for it, on this rank."""
    warning: str | None
    """What went wrong behind the publication (an old checkpoint that could not be deleted)."""


@dataclass(frozen=True)
class Dropped:
    """A save that came to nothing; the checkpoints before it are as they were."""

    step: int
    reason: str
    """What refused, on which rank."""
    stall_seconds: float


Outcome = Saved | Dropped


@dataclass
class _Job:
    """The save in flight, as this rank sees it."""

    state: State
    form: Form
    folder: Path
    """Hidden, until it is published."""
    phases: Generator[Callable[[], Files], Files, None] = field(init=False)
    work: Work = field(init=False)
    begun: float = field(default_factory=time.perf_counter)
    published: float = 0.0
    """When, on the main rank."""
    stall_seconds: float = 0.0
    warning: str | None = None


class Saver:
    """Writes a run's checkpoints, one at a time. Every method but `flags` and `close` is collective."""

    def __init__(self, run_folder: Path, settings: CheckpointConfig, ranks: Ranks, require_ours: Callable[[], None] = lambda: None) -> None:
        """The run folder's store must have been prepared. require_ours: raises UserError where another process has taken
        the folder over; asked in the main rank's thread before anything becomes visible or goes."""
        self._run_folder, self._settings, self._ranks, self._require_ours = Path(run_folder), settings, ranks, require_ours
        self._snapshot = Snapshot()
        self._job: _Job | None = None
        self._closed = False
        self._publication = threading.Lock()

    @property
    def in_flight(self) -> int | None:
        """The step whose save has begun and was neither published nor dropped."""
        return self._job.state.step if self._job else None

    @property
    def flags(self) -> tuple[bool, bool]:
        """(this rank still writes, its writing failed): for `Ranks.any_of`, then `poll`."""
        if self._job is None:
            return False, False
        return self._job.work.is_alive(), self._job.work.error is not None

    def begin(self, state: State, pieces: Sequence[Piece], form: Form = ROUTINE, since: float | None = None) -> None:
        """Copy this rank's pieces, and start to write them. No other save may be in flight: `finish` it first.

        since: time.perf_counter() when training began to wait for this save; now, if not given.
        """
        assert self._job is None, f"the save of step {self.in_flight} is still in flight"
        target = step_folder(self._run_folder, state.step)
        job = _Job(state, form, target.with_name(f".{target.name}.attempt-{state.attempt}.tmp"))
        job.begun = since or job.begun
        job.phases = self._phases(job, self._snapshot.take(pieces))
        job.work = Work(next(job.phases))
        job.stall_seconds = time.perf_counter() - job.begun
        self._job = job

    def poll(self, busy: bool, failed: bool) -> Outcome | None:
        """Go on with the next phase if no rank works on this one; flags of all ranks. The outcome, once there is one.

        Raises what a thread met that is no refusal of the disk; UserError on every rank.
        """
        job = self._job
        if job is None or busy:
            return None
        begun = time.perf_counter()
        if failed:
            self._job = None
            reason = self._drop(job)
            return Dropped(job.state.step, reason, job.stall_seconds + time.perf_counter() - begun)
        ended = self._advance(job)
        job.stall_seconds += time.perf_counter() - begun
        if not ended:
            return None
        self._job = None
        seconds = (job.published or time.perf_counter()) - job.begun
        folder = step_folder(self._run_folder, job.state.step)
        return Saved(job.state.step, folder, job.form, seconds, job.stall_seconds, job.warning)

    def finish(self, beat: Callable[[], None] = lambda: None) -> Outcome | None:
        """Wait for what is in flight; None when nothing is. beat: called at the end of each phase."""
        outcome = None
        while self._job is not None:
            begun, job = time.perf_counter(), self._job
            job.work.join()
            busy, failed = self._ranks.any_of(*self.flags)
            job.stall_seconds += time.perf_counter() - begun
            outcome = self.poll(busy, failed)
            beat()
        return outcome

    def close(self) -> None:
        """Nothing is published from now on: what is in flight is left for the next start to sweep away. Waits for no thread."""
        with self._publication:
            self._closed = True

    def _advance(self, job: _Job) -> bool:
        """Begin the next phase; whether there is none."""
        files = Files()
        for found in self._ranks.gather(job.work.result):
            files |= found
        try:
            job.work = Work(job.phases.send(files))
        except StopIteration:
            return True
        return False

    def _drop(self, job: _Job) -> str:
        """Let the save go on every rank; returns what refused."""
        failures = [(rank, failure) for rank, failure in enumerate(self._ranks.gather(told(job.work.error))) if failure]
        if self._ranks.is_main:
            shutil.rmtree(job.folder, ignore_errors=True)
        for rank, failure in failures:
            if failure.of_the_user:
                raise UserError(failure.text)
            if not failure.of_the_disk:
                raise RuntimeError(f"the save of step {job.state.step} failed on rank {rank}: {failure.text}") from job.work.error
        rank, failure = failures[0]
        return (f"rank {rank}: " if self._ranks.world_size > 1 else "") + failure.text

    def _phases(self, job: _Job, pieces: Sequence[Piece]) -> Generator[Callable[[], Files], Files, None]:
        """What this rank's thread does, phase by phase; each `yield` gives what all ranks wrote in it."""
        rank, world_size, weights = self._ranks.rank, self._ranks.world_size, job.folder / "weights"
        routine = job.folder / "routine" if job.form == NEUTRAL else weights
        parts = files = yield lambda: write_routine(routine, pieces, rank, world_size, job.state.step)
        if job.form == NEUTRAL:
            files = yield lambda: write_whole(routine, parts, weights, rank, world_size)
        yield lambda: self._publish(job, files) if self._ranks.is_main else Files()

    def _publish(self, job: _Job, files: Files) -> Files:
        """The main rank's last phase: the folder becomes visible, and what need not be kept goes."""
        await_files(job.folder / "weights", files)
        if job.form == NEUTRAL:
            shutil.rmtree(job.folder / "routine")
        write_state(job.folder, job.state, job.form, {f"weights/{name}": files[name] for name in sorted(files)})
        with self._publication:
            assert not self._closed, "the run has ended"
            self._require_ours()
            self._rename(job.folder, step_folder(self._run_folder, job.state.step))
        job.published = time.perf_counter()
        try:
            self._prune(job.state.step)
        except OSError as error:
            job.warning = f"an older checkpoint could not be deleted: {error}"
        return Files()

    def _rename(self, folder: Path, target: Path) -> None:
        # A process that was cut off may have published this very step, just before it was replaced.
        aside = target.with_name(f"{folder.name.removesuffix('.tmp')}.replaced.tmp")
        if target.exists():
            os.rename(target, aside)
        os.rename(folder, target)
        fsync_directory(target.parent)
        shutil.rmtree(aside, ignore_errors=True)

    def _prune(self, published: int) -> None:
        folders = {step_of(folder): folder for folder in step_folders(self._run_folder)}
        for step in doomed(folders, published, self._settings.keep, self._settings.keep_every_steps):
            discard(folders[step])


def publish(
    run_folder: Path,
    state: State,
    pieces: Sequence[Piece],
    ranks: Ranks,
    settings: CheckpointConfig | None = None,
    form: Form = ROUTINE,
) -> Path:
    """Write one checkpoint and wait for it; returns its folder. Collective.

    Raises OSError when it was dropped.
    """
    if ranks.is_main:
        prepare_store(run_folder)
    ranks.broadcast(None)  # it sweeps: no rank may write before it has
    saver = Saver(run_folder, settings or CheckpointConfig(), ranks)
    saver.begin(state, pieces, form)
    outcome = saver.finish()
    if not isinstance(outcome, Saved):
        raise OSError(f"the checkpoint of step {state.step} was not written: {outcome.reason if outcome else 'nothing was begun'}")
    return outcome.folder
