"""What a run says of itself: log.jsonl (every step), TensorBoard (every step), the console (now and then)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_codemix.checkpoint.publish import Dropped, Saved
from megatron_codemix.config import LoggingConfig
from megatron_codemix.engine import StepResult
from megatron_codemix.mixture import StagePlan
from megatron_codemix.progress import say
from megatron_codemix.train.board import Board
from megatron_codemix.train.guards import PlannedSkip, RankReport, Usual, Verdict
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.log import LOG_NAME, LogFile
from megatron_codemix.train.meter import Meter, Speed
from megatron_codemix.train.validation import ValidationResult

_QUIET_SECONDS = 30.0
"""The console gets a line at least this often, however slow the steps are."""


class Diverged(RuntimeError):
    """Loss or gradient norm is no longer a number."""


class Recorder:
    """Writes a run's log, event files and console lines: in its main process; in the others it only counts."""

    def __init__(
        self,
        run_folder: Path,
        settings: LoggingConfig,
        meter: Meter,
        lock: RunLock | None,
        *,
        first_step: int,
        num_steps: int,
        tokens: int,
        name: str = "run",
    ) -> None:
        """lock: the run folder's, in the main process alone. first_step: updates done already; num_steps: of the
        whole plan; tokens: target tokens trained on so far; name: of the run."""
        self._lock, main = lock, lock is not None
        self._log = LogFile(run_folder / LOG_NAME) if main else None
        self._board = Board(run_folder, settings, name, first_step) if main else None
        self._settings, self._meter = settings, meter
        self._first_step, self._num_steps, self.tokens = first_step, num_steps, tokens
        self._begun = self._shown = time.monotonic()

    def start(self, facts: dict[str, Any], continued: str = "") -> None:
        """The process begins to train; facts: of the run, for the log; continued: the checkpoint, in words."""
        peak = self._meter.peak
        self._append("start", first_step=self._first_step, num_steps=self._num_steps, peak_tflops=peak.tflops, peak=peak.origin, **facts)
        known = f"{peak.tflops:,.3g} TFLOP/s ({peak.origin})" if peak.tflops else peak.origin
        if self._first_step:
            self._say(f"continuing {continued or 'a checkpoint'} after step {self._first_step:,}")
        layout, steps = facts.get("layout", "one process"), f"steps {self._first_step + 1:,} to {self._num_steps:,}"
        self._say(f"{layout}, {steps}; speeds are medians since the line before; MFU against {known}")

    def step(self, step: int, stage: StagePlan, result: StepResult, learning_rate: float, usual_norm: Usual | None = None) -> None:
        """Update number `step` (1 = the first) was made, and timed by the meter. usual_norm: of the gradients of late.

        Raises Diverged when loss or gradient norm is not finite, so that no such state is saved.
        """
        loss, grad_norm = result.loss, result.grad_norm
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.diverged(step, result, f"step {step}: loss {loss}, gradient norm {grad_norm}")
        self.tokens += result.target_tokens
        speed = self._meter.speed(stage.batch_size_at(step - 1) * stage.sequence_length, stage.sequence_length)
        usual = {"grad_norm_median": usual_norm.median, "grad_norm_spread": usual_norm.spread} if usual_norm else {}
        line = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            **usual,
            "tokens": self.tokens,
            "tokens_per_second": speed.tokens_per_second,
            "tflops": speed.tflops,
            "mfu": speed.mfu,
            "seconds": speed.seconds,
            "loader_seconds": speed.loader_seconds,
        }
        self._append("step", step=step, stage=stage.name, **line)
        self._scalars("train", step, {name: line[name] for name in ("loss", "learning_rate", "grad_norm", *usual, "tokens")})
        self._scalars("speed", step, {name: line[name] for name in ("tokens_per_second", "tflops", "mfu", "seconds", "loader_seconds")})
        if self._due(step):
            self._show(step, stage.name, loss, learning_rate, grad_norm)

    def diverged(self, step: int, result: StepResult, why: str) -> NoReturn:
        """Raise Diverged: training cannot go on behind step number `step`. why: what was seen, in words."""
        self._append("diverged", step=step, loss=repr(result.loss), grad_norm=repr(result.grad_norm), why=why)
        raise Diverged(f"{why}: training has diverged; lower the learning rate")

    def judged(self, step: int, result: StepResult, verdict: Verdict) -> None:
        """The guard had something to say of step number `step`: a spike that is only noted, or an update that was refused."""
        figures = {"loss": _json_number(result.loss), "grad_norm": _json_number(result.grad_norm)}
        self._append("guard", step=step, action=verdict.action, why=verdict.why, **figures)
        what = {"go on": "noted", "skip": "its update is left out", "rewind": "going back"}[verdict.action]
        self._say(f"{verdict.why}: {what}")

    def left_out(self, step: int, why: str) -> None:
        """Step number `step` was passed over, as a rewind had planned."""
        self._append("left_out", step=step, why=why)
        if self._due(step):
            self._say(f"step {step:,}/{self._num_steps:,}  left out ({why})")

    def went_back(self, first_step: int, tokens: int, skip: PlannedSkip) -> None:
        """The run continues after step `first_step`, and leaves out what `skip` says; tokens: trained on up to there."""
        self._append("rewind", first_step=first_step, fault=skip.fault, first=skip.first, end=skip.end, why=skip.why)
        steps = f"steps {skip.first + 1:,} to {skip.end:,} are left out"
        self._say(f"went back to the checkpoint of step {first_step:,}; {steps} ({skip.why})")
        self._first_step, self.tokens = first_step, tokens
        self._begun = time.monotonic()
        if self._board:
            self._board.begin(first_step)

    def ranks(self, step: int, report: RankReport) -> None:
        """How the ranks compare, after step number `step`."""
        self._append("ranks", step=step, **report.as_json())
        self._scalars("ranks", step, report.scalars)
        for line in report.words():
            self._say(f"step {step:,}  {line}")

    def validation(self, step: int, results: Sequence[ValidationResult]) -> None:
        """Validation after update `step`. Raises Diverged, in every process, when a loss is not finite."""
        wrong = [result for result in results if not math.isfinite(result.loss)]
        if wrong:
            self._append("diverged", step=step, source=wrong[0].source, loss=repr(wrong[0].loss))
            raise Diverged(
                f"step {step}: validation loss on {wrong[0].source} {wrong[0].loss}: training has diverged; lower the learning rate"
            )
        for result in results:
            line = {"loss": result.loss, "bits_per_byte": result.bits_per_byte}
            counts = {"target_tokens": result.target_tokens, "bytes": result.num_bytes}
            self._append("validation", step=step, tokens=self.tokens, source=result.source, **line, **counts)
            self._scalars(f"validation/{result.source}", step, line)
        shown = "  ".join(f"{result.source} {result.bits_per_byte:.4f}" for result in results)
        self._say(f"step {step:,}  validation, bits per byte: {shown}")

    def before_checkpoint(self) -> None:
        """A checkpoint is about to be published: whatever survives a power cut with it, the log of its steps does too."""
        if self._log:
            self._log.sync()
        if self._board:
            self._board.flush()

    def checkpoint(self, saved: Saved) -> None:
        """A checkpoint was published."""
        times = {"seconds": saved.seconds, "stall_seconds": saved.stall_seconds}
        self._append("checkpoint", step=saved.step, folder=saved.folder.name, form=saved.form, **times)
        self._say(f"step {saved.step:,}  saved {saved.folder} in {saved.seconds:.1f} s; training waited {saved.stall_seconds:.2f} s")
        if saved.warning:
            self._say(f"warning: {saved.warning}")

    def checkpoint_failed(self, dropped: Dropped) -> None:
        """A save came to nothing."""
        self._append("checkpoint_failed", step=dropped.step, reason=dropped.reason, stall_seconds=dropped.stall_seconds)
        self._say(f"warning: the checkpoint of step {dropped.step:,} was not saved ({dropped.reason}); the one before it stays the newest")

    def end(self, step: int, reason: str) -> None:
        """The process leaves after update `step`; reason: "finished" or "stopped"."""
        self._append("end", step=step, reason=reason, tokens=self.tokens)

    def close(self) -> None:
        """Flush and close every file."""
        if self._board:
            self._board.close()
        if self._log:
            try:
                # what a full disk did not take by now does not go into the log of whoever took the folder over
                self._log.close(abandon=not (self._lock and self._lock.is_held()))
            except OSError as error:  # no reason to hide how the run ended
                self._say(f"warning: the last lines of the log could not be written ({error.strerror})")

    def _append(self, kind: str, **fields: Any) -> None:
        # Who was replaced writes no line; the ranks find it out together, at their next exchange.
        if self._log and self._lock and self._lock.is_held():
            self._log.append({"kind": kind, **fields, "time": time.time()})

    def _say(self, text: str) -> None:
        if self._log:
            say(text)

    def _scalars(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        if self._board:
            self._board.scalars(group, step, values)

    def _due(self, step: int) -> bool:
        regular = step % self._settings.every_steps == 0 or step in (self._first_step + 1, self._num_steps)
        return regular or time.monotonic() - self._shown >= _QUIET_SECONDS

    def _show(self, step: int, stage: str, loss: float, learning_rate: float, grad_norm: float) -> None:
        self._shown = time.monotonic()
        mean = (self._shown - self._begun) / (step - self._first_step)  # with validations and saves, unlike the speeds
        self._say(
            f"step {step:,}/{self._num_steps:,}  {stage}  loss {loss:.4f}  lr {learning_rate:.3e}  grad {grad_norm:.3f}  "
            f"{speed_words(self._meter.recent())}  ETA {duration(mean * (self._num_steps - step))}"
        )


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def speed_words(speed: Speed) -> str:
    """'12,345 tokens/s  0.0123 TFLOP/s  MFU 41.2 %'."""
    mfu = "MFU ?" if speed.mfu is None else f"MFU {speed.mfu:.1%}"
    return f"{speed.tokens_per_second:,.0f} tokens/s  {speed.tflops:.3g} TFLOP/s  {mfu}"


def duration(seconds: float) -> str:
    """'0:42', '12:05' or '3 d 04:11:09'."""
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days or hours:
        return (f"{days} d " if days else "") + f"{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"
