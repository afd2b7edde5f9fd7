"""A run in progress: what the main loop calls, with every detail it should not have to show."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from megatron_codemix.batches import Batch, Loader, validation_batches
from megatron_codemix.checkpoint import ROUTINE, State, Superseded, step_folders
from megatron_codemix.checkpoint.publish import Dropped, Outcome, Saved, Saver
from megatron_codemix.config import RunConfig
from megatron_codemix.engine import Engine, StepResult
from megatron_codemix.errors import JobError
from megatron_codemix.mixture import Ledger, Lineage, Plan
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import progress, say
from megatron_codemix.train.guards import Garbage, Guard, Pace, RankReport
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.log import read_log
from megatron_codemix.train.meter import Meter
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.schedule import Schedule
from megatron_codemix.train.stopping import StopRequest
from megatron_codemix.train.validation import ByteCounter, ValidationResult
from megatron_codemix.train.watchdog import Watchdog


@dataclass
class Run:
    """Opened by `assemble.open_run`; the loop drives it from `first_step` to the plan's end."""

    config: RunConfig
    inputs: Inputs
    topology: Topology
    engine: Engine
    loader: Loader
    ledger: Ledger
    lineage: Lineage
    guard: Guard
    meter: Meter
    pace: Pace
    garbage: Garbage
    recorder: Recorder
    saver: Saver
    lock: RunLock | None
    """The run folder's, in the main process alone."""
    watchdog: Watchdog
    stop: StopRequest
    first_step: int
    """Updates done when this process took over."""
    attempt: int
    """Which start of the run this is: 0 for the first."""
    revision: str
    """Of the code."""
    overrides: tuple[str, ...]
    """`a.b=c` settings of the command line."""
    changes: tuple[str, ...] = ()
    """What of the config was changed on purpose since the checkpoint that this process continued from."""

    @property
    def plan(self) -> Plan:
        """The compiled plan."""
        return self.inputs.plan

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step` (0-based)."""
        return self.schedule.at(step)

    @cached_property
    def schedule(self) -> Schedule:
        """Learning rates of all steps."""
        return Schedule(self.config)

    def steps(self) -> Iterator[int]:
        """The step that comes next, until the plan ends; behind a rewind, that of the checkpoint."""
        while self.engine.step < self.plan.num_steps:
            yield self.engine.step

    def made(self, step: int, batches: Sequence[Batch], result: StepResult, rate: float) -> None:
        """Note what came of step `step`: an update, or a refusal. Collective; raises Diverged, on every rank, where it ends the run."""
        verdict = self.guard.verdict
        if result.updated:
            self.ledger.count(batches)
            self.recorder.step(step + 1, self.plan.stage_at(step), result, rate, self.guard.usual_norm)
        elif verdict.action == "skip":
            self._leave_out(step, verdict.why)
        elif verdict.action == "stop":
            self.recorder.diverged(step + 1, result, verdict.why)
        if verdict.why:
            self.recorder.judged(step + 1, result, verdict)
        self.pace.add(self.engine.own_seconds, self.meter.loader_seconds)
        self.garbage.step(step + 1)
        if _multiple(step + 1, self.config.guards.ranks_every_steps):
            self.recorder.ranks(step + 1, RankReport(self.topology.gather(self.pace.state())))

    def pass_over(self, step: int, why: str) -> None:
        """Leave out a step that a rewind has planned to leave out."""
        self.engine.pass_over()
        self._leave_out(step, why)
        self.recorder.left_out(step + 1, why)

    def _leave_out(self, step: int, why: str) -> None:
        self._trained_up_to(step)
        self.lineage.skip(step, step + 1, why)

    def _trained_up_to(self, step: int) -> None:
        """The lineage goes on to `step`, with what this attempt has trained on."""
        if step > self.lineage.step:
            self._add_interval(step)

    def _add_interval(self, end: int) -> None:
        how = {"overrides": self.overrides, "changes": self.changes}
        self.lineage.add_interval(self.plan.fingerprint, self.lineage.step, end, attempt=self.attempt, **how)

    def record_an_early_end(self) -> None:
        """Changes on purpose that leave no step to make are noted too: in a checkpoint that takes the place of the last. Collective."""
        if self.changes and self.first_step == self.plan.num_steps:
            self._add_interval(self.first_step)
            self.save(self.first_step)

    def exchange(self, done: int) -> bool:
        """After step number `done`: whether to stop, and the save in flight goes on. Collective: one answer for all.

        Raises Superseded, on every rank, when another process has taken the run folder over.
        """
        self.watchdog.beat(done, "step")
        lost = self.lock is not None and not self.lock.is_held()
        stop, lost, busy, failed = self.topology.any_of(self.stop.look(), lost, *self.saver.flags)
        if lost:
            raise Superseded.of(self.config.output)
        self._note(self.saver.poll(busy, failed))
        return stop

    def save_due(self, done: int) -> bool:
        """Whether a checkpoint belongs after update number `done`."""
        settings = self.config.checkpoint
        return done == self.plan.num_steps or _multiple(done, settings.every_steps) or done in settings.keep_steps

    def validation_due(self, done: int) -> bool:
        """Whether validation belongs after update number `done`."""
        return bool(self.inputs.validation) and (done == self.plan.num_steps or _multiple(done, self.config.validation.every_steps))

    def save(self, done: int, leaving: bool = False) -> None:
        """Begin the checkpoint of update number `done`, after the one before it has ended. Collective.

        The run's last one, and one that is made to leave, are waited for. Raises JobError where such a one came to nothing.
        """
        self.settle()
        begun = time.perf_counter()
        self.recorder.before_checkpoint()
        self._trained_up_to(done)
        state = State(
            step=done,
            config=self.config,
            vocab_size=self.inputs.tokenizer.vocab_size,
            tokenizer_model=self.inputs.tokenizer.model,
            plan=self.plan.fingerprint,
            cursors=self.plan.cursors(done),
            ledger=self._whole_ledger().as_json(),
            lineage=self.lineage.as_json(),
            guards=self.guard.as_json(),
            attempt=self.attempt,
            world_size=self.topology.world_size,
            revision=self.revision,
        )
        settings, last = self.config.checkpoint, done == self.plan.num_steps
        self.saver.begin(state, self.engine.pieces(), settings.final_form if last else ROUTINE, since=begun)
        if leaving or last or not settings.asynchronous:
            outcome = self.settle()
            if isinstance(outcome, Dropped) and (leaving or last):
                raise JobError(f"step {done} could not be saved ({outcome.reason}); {self._remedy(last)}")

    def settle(self) -> Outcome | None:
        """Wait for the save in flight, if there is one. Collective."""
        return self._note(self.saver.finish(lambda: self.watchdog.beat(self.engine.step, "checkpoint")))

    def _note(self, outcome: Outcome | None) -> Outcome | None:
        if isinstance(outcome, Saved):
            self.recorder.checkpoint(outcome)
        elif isinstance(outcome, Dropped):
            self.recorder.checkpoint_failed(outcome)
        return outcome

    def _remedy(self, last: bool) -> str:
        """What to do about a save that came to nothing."""
        twice = last and self.config.checkpoint.final_form != ROUTINE
        space = " (checkpoint.final_form=routine needs half of it)" if twice else ""
        folders = step_folders(self.config.output)
        where = f"continues from {folders[0].name}" if folders else "begins anew"
        return f"make room below {self.config.output}{space}, then start the same command again: it {where}"

    def validate(self, done: int) -> None:
        """Loss and bits per byte on each source's validation split after update number `done`. Collective."""
        length = self.plan.stage_at(done - 1).sequence_length
        results = []
        for name in self.inputs.validation:
            results.append(self._validate_source(name, length))
            self._note(self.saver.poll(*self.topology.any_of(*self.saver.flags)))
        self.recorder.validation(done, results)

    def validate_what_was_missed(self) -> None:
        """Make up for a validation that was due after `first_step`, but that the process before did not come to."""
        missed = self.first_step > 0 and self.validation_due(self.first_step)
        if missed and self.topology.is_main:
            lines = read_log(self.config.output)
            made = {line["source"] for line in lines if line["kind"] == "validation" and line["step"] == self.first_step}
            missed = not made.issuperset(self.inputs.validation)
        if self.topology.broadcast(missed):
            self.validate(self.first_step)

    def end(self, finished: bool) -> None:
        """Say how it ended, in the log and on stdout. Collective; raises Superseded as `exchange` does."""
        done = self.plan.num_steps if finished else self.engine.step
        self.exchange(done)
        self.recorder.end(done, "finished" if finished else "stopped")
        if self.topology.is_main:
            how = "finished" if finished else f"stopped at step {done:,} of {self.plan.num_steps:,}; the same command continues"
            say(f"{self.config.name}: {how}; newest checkpoint: {step_folders(self.config.output)[0]}", sys.stdout)

    def _whole_ledger(self) -> Ledger:
        """What all data-parallel ranks have consumed, on the main process."""
        whole = Ledger(self.ledger.sources)
        for part in self._of_all_ranks(self.ledger):
            whole.merge(part)
        return whole

    def _of_all_ranks(self, value: Any) -> list[Any]:
        """Each data-parallel rank's `value`. Collective."""
        data = self.topology.data
        if data.size == 1:
            return [value]
        values: list[Any] = [None] * data.size
        torch.distributed.all_gather_object(values, value, group=data.group)
        return values

    def _beating(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each of which is progress."""
        for batch in batches:
            self.watchdog.beat(self.engine.step, "validation")
            yield batch

    def _validate_source(self, name: str, sequence_length: int) -> ValidationResult:
        reader, settings = self.inputs.validation[name], self.config.validation
        windows = min(reader.num_windows(sequence_length), settings.max_windows or sys.maxsize)
        counter = ByteCounter()
        with progress(f"validation on {name}", windows, "windows") as bar:
            batches = validation_batches(
                reader,
                source_index=self.plan.sources.index(name),
                sequence_length=sequence_length,
                micro_batch_size=self.config.micro_batch_size,
                token_num_bytes=self.inputs.tokenizer.token_num_bytes,
                max_windows=settings.max_windows,
                dp_rank=self.topology.data_rank,
                dp_size=self.topology.data_size,
            )
            nats, target_tokens = self.engine.evaluate(counter.counting(self._beating(batches), bar))
        return ValidationResult(name, nats, target_tokens, sum(self._of_all_ranks(counter.num_bytes)))


def _multiple(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
