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

Where a rank's disk refuses, all ranks drop the save and the folder goes, in a phase of its own; what was published before is
untouched. Where it refuses the neutral form alone, what phase 1 wrote is published instead.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from megatron_codemix.checkpoint.outcome import Dropped, Outcome, Saved
from megatron_codemix.checkpoint.phases import (
    Beat,
    Failure,
    Files,
    Job,
    Task,
    Work,
    await_files,
    require_whole,
    told,
    write_routine,
    write_whole,
)
from megatron_codemix.checkpoint.ranks import Ranks
from megatron_codemix.checkpoint.record import NEUTRAL, ROUTINE, Form
from megatron_codemix.checkpoint.retention import doomed
from megatron_codemix.checkpoint.snapshot import Snapshot
from megatron_codemix.checkpoint.state import State, write_state
from megatron_codemix.checkpoint.store import REPLACED, discard, prepare_store, step_folder, step_folders, step_of
from megatron_codemix.config import CheckpointConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import fsync_directory, remove_folder
from megatron_codemix.pieces import Piece

_ROUND_SECONDS = 1.0
"""Who waits for a save asks the others this often how theirs goes on."""


class Saver:
    """Writes a run's checkpoints, one at a time. Every method but `flags` and `close` is collective."""

    def __init__(
        self,
        run_folder: Path,
        settings: CheckpointConfig,
        ranks: Ranks,
        require_ours: Callable[[], None] = lambda: None,
        swap_folder: Path | None = None,
    ) -> None:
        """The run folder's store must have been prepared. require_ours: raises UserError where another process has taken
        the folder over; asked in the main rank's thread before anything becomes visible or goes. swap_folder: of this rank, where
        copies of pieces lie while they are written; None: in host memory."""
        self._run_folder, self._settings, self._ranks, self._require_ours = Path(run_folder), settings, ranks, require_ours
        # in the names of hidden folders: two starts that cannot see each other may count the same attempt
        self._token: str = ranks.broadcast(secrets.token_hex(4))
        self._snapshot = Snapshot(swap_folder)
        self._job: Job | None = None
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

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Take the host memory that such pieces need, before training begins."""
        self._snapshot.reserve(pieces)

    def begin(self, state: State, pieces: Sequence[Piece], form: Form = ROUTINE, since: float | None = None) -> None:
        """Copy this rank's pieces, and start to write them. No other save may be in flight: `finish` it first.

        since: time.perf_counter() when training began to wait for this save; now, if not given.
        """
        assert self._job is None, f"the save of step {self.in_flight} is still in flight"
        target = step_folder(self._run_folder, state.step)
        job = Job(state, form, target.with_name(f".{target.name}.attempt-{state.attempt}.{self._token}.tmp"))
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
        if job.refusal is None:
            ended = self._refused(job) if failed else self._advance(job)
        else:
            ended = True
        job.stall_seconds += time.perf_counter() - begun
        if not ended:
            return None
        self._job = None
        if job.refusal is not None:
            left = told(job.work.error)
            stays = f"; what it had written could not be deleted: {left.text}" if left else ""
            return Dropped(job.state.step, job.refusal + stays, job.stall_seconds)
        seconds = (job.published or time.perf_counter()) - job.begun
        folder = step_folder(self._run_folder, job.state.step)
        return Saved(job.state.step, folder, job.form, seconds, job.stall_seconds, job.warning)

    def finish(self, beat: Beat = lambda: None) -> Outcome | None:
        """Wait for what is in flight; None when nothing is. beat: called every second or so, as long as any rank gets on."""
        outcome = None
        while self._job is not None:
            begun, job = time.perf_counter(), self._job
            if job.work.is_alive():
                job.work.join(_ROUND_SECONDS)
            busy, failed, moved = self._ranks.any_of(*self.flags, job.work.moved())
            job.stall_seconds += time.perf_counter() - begun
            outcome = self.poll(busy, failed)
            if moved or not busy:
                beat()
        return outcome

    def close(self) -> None:
        """Nothing is published from now on: what is in flight is left for the next start to sweep away. Waits for no thread."""
        with self._publication:
            self._closed = True

    def _advance(self, job: Job) -> bool:
        """Begin the next phase; whether there is none."""
        files = Files()
        for found in self._ranks.gather(job.work.result):
            files |= found
        return self._go_on(job, files)

    def _go_on(self, job: Job, files: Files | None) -> bool:
        try:
            job.work = Work(job.phases.send(files))
        except StopIteration:
            return True
        return False

    def _refused(self, job: Job) -> bool:
        """A phase failed on some rank: begin what follows from that. Raises, on every rank, what is no refusal of the disk."""
        failures = [(rank, failure) for rank, failure in enumerate(self._ranks.gather(told(job.work.error))) if failure]
        rank, failure = failures[0]
        reason = (f"rank {rank}: " if self._ranks.world_size > 1 else "") + failure.text
        if job.falls_back:  # for whatever reason: the state of this step is nowhere else
            job.form = ROUTINE
            job.warning = (
                f"there was no writing the neutral form ({reason}), so this is the routine one; `codemix checkpoint reshard` makes it"
            )
            return self._go_on(job, None)
        for rank, failure in failures:
            if not failure.of_the_disk:
                self._give_up(job, rank, failure)
        job.refusal = reason
        job.work = Work(lambda beat: self._remove(job.folder))
        return False

    def _give_up(self, job: Job, rank: int, failure: Failure) -> NoReturn:
        self._job = None
        with suppress(OSError):
            self._remove(job.folder)
        if failure.of_the_user:
            raise UserError(failure.text)
        raise RuntimeError(f"the save of step {job.state.step} failed on rank {rank}: {failure.text}") from job.work.error

    def _remove(self, folder: Path) -> Files:
        if self._ranks.is_main:
            remove_folder(folder)
        return Files()

    def _phases(self, job: Job, pieces: Sequence[Piece]) -> Generator[Task, Files | None, None]:
        """What this rank's thread does, phase by phase; each `yield` gives what all ranks wrote in it, None if that failed."""
        rank, world_size, weights = self._ranks.rank, self._ranks.world_size, job.folder / "weights"
        wanted = job.form
        routine = job.folder / "routine" if wanted == NEUTRAL else weights
        parts = yield lambda beat: write_routine(routine, pieces, rank, world_size, job.state.step, beat)
        assert parts is not None
        files: Files | None = parts
        if wanted == NEUTRAL:
            job.falls_back = True
            files = yield lambda beat: write_whole(routine, parts, weights, rank, world_size, beat)
            job.falls_back = False
        yield lambda beat: self._publish(job, routine, parts, files) if self._ranks.is_main else Files()

    def _publish(self, job: Job, routine: Path, parts: Files, files: Files | None) -> Files:
        """The main rank's last phase: the folder becomes visible, and what need not be kept goes.

        parts: the files in `routine`; files: what is to be in weights/, None for the same.
        """
        weights = job.folder / "weights"
        if files is None:
            files = parts
            remove_folder(weights)  # some of the neutral form
            os.rename(routine, weights)
        await_files(weights, files)
        require_whole(weights, files, job.state)
        if routine.exists() and routine != weights:
            remove_folder(routine)
        write_state(job.folder, job.state, job.form, {f"weights/{name}": files[name] for name in sorted(files)})
        with self._publication:
            assert not self._closed, "the run has ended"
            self._require_ours()
            replaced = self._rename(job.folder, step_folder(self._run_folder, job.state.step))
        job.published = time.perf_counter()
        # it is there, so nothing that follows makes a failure of it
        warnings = [job.warning, self._clear(job, replaced)]
        job.warning = "; ".join(filter(None, warnings)) or None
        return Files()

    def _rename(self, folder: Path, target: Path) -> Path | None:
        """Give a folder its visible name; returns where that one lies now that had it."""
        if not target.exists():
            os.rename(folder, target)
            return None
        # A process that was cut off may have published this very step, just before it was replaced. Should this process be
        # killed right here, `prepare_store` gives that one back its name.
        aside = target.with_name(folder.name.removesuffix(".tmp") + REPLACED)
        os.rename(target, aside)
        try:
            os.rename(folder, target)
        except OSError:
            os.rename(aside, target)
            raise
        return aside

    def _clear(self, job: Job, replaced: Path | None) -> str | None:
        """Behind the publication: make it last, then delete what need not be kept; returns what could not be done, in words."""
        try:
            fsync_directory(step_folder(self._run_folder, job.state.step).parent)
        except OSError as error:
            return f"a power cut may hide this checkpoint again, so nothing older was deleted ({error})"
        if job.warning:
            return None  # the disk is in trouble: the older ones are worth their room
        try:
            if replaced:
                remove_folder(replaced)
            self._prune(job.state.step)
        except OSError as error:
            return f"an older checkpoint could not be deleted: {error}"
        return None

    def _prune(self, published: int) -> None:
        folders = {step_of(folder): folder for folder in step_folders(self._run_folder)}
        for step in doomed(folders, published, self._settings.keep, self._settings.keep_every_steps, self._settings.keep_steps):
            self._require_ours()  # the rename may have taken minutes: whoever came since may be reading this very folder
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
