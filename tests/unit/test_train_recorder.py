"""Meter, recorder, stop requests: figures by hand, what reaches log, TensorBoard and console."""

import os
import signal
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_codemix.checkpoint.publish import Dropped, Saved
from megatron_codemix.config import LoggingConfig, ModelConfig
from megatron_codemix.engine import StepResult
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.log import LogFile, read_log
from megatron_codemix.train.meter import Meter, Peak, device_peak
from megatron_codemix.train.recorder import Diverged, Recorder, duration
from megatron_codemix.train.stopping import StopRequest, stop_signals
from megatron_codemix.train.validation import ByteCounter, ValidationResult

MODEL = ModelConfig(num_layers=2, hidden_size=8, num_attention_heads=2, ffn_hidden_size=16)
ROWS, LENGTH = 128, 16


def meter(peak=None, world_size=1, seconds=0.5):
    made = Meter(MODEL, ROWS, world_size, peak or Peak(1e-3, "told"))
    made._seconds = seconds
    return made


def recorder(folder, metered, *, main=True, held=True, first_step=0, tokens=0, every_steps=2, num_steps=4):
    settings = LoggingConfig(every_steps=every_steps, tensorboard=main)
    lock = cast(RunLock, SimpleNamespace(is_held=lambda: held)) if main else None
    return Recorder(folder, settings, metered, lock, first_step=first_step, num_steps=num_steps, tokens=tokens)


def step(made, number, loss_sum=64.0, grad_norm=0.5):
    stage = SimpleNamespace(name="only", sequence_length=LENGTH, batch_size_at=lambda step: 32 // LENGTH)
    made.step(number, stage, StepResult(loss_sum, 32, grad_norm), 0.1)


def test_speed_by_hand():
    # 6 · (2 layers · (8·(16+16) attention + 3·8·16 feed-forward) + 128·8 head) + 6 · 2 · 16 · 8 attention scores
    flops = 6 * (2 * (8 * 32 + 384) + 1024) + 6 * 2 * 16 * 8
    speed = meter(world_size=2).speed(32, LENGTH)
    assert speed.tokens_per_second == 64
    assert speed.tflops == pytest.approx(64 * flops / 1e12 / 2, rel=1e-12)
    assert speed.mfu == pytest.approx(speed.tflops / 1e-3, rel=1e-12)


def test_an_unknown_peak_gives_no_mfu():
    metered = meter(peak=Peak(None, "unknown"))
    assert metered.speed(32, LENGTH).mfu is None
    assert metered.recent().mfu is None


def test_the_console_shows_medians_since_the_line_before():
    metered = meter()
    for seconds in (1.0, 100.0, 2.0):
        metered._seconds = seconds
        metered.speed(32, LENGTH)
    assert metered.recent().seconds == 2.0
    metered._seconds = 7.0
    metered.speed(32, LENGTH)
    assert metered.recent().seconds == 7.0


def test_timing_measures_the_block():
    metered = meter(seconds=0.0)
    with metered.timed():
        time.sleep(0.02)
    assert 0.02 <= metered.speed(32, LENGTH).seconds < 2.0


def test_the_peak_is_configured_or_measured_and_says_which():
    assert device_peak(3.5, torch.device("cpu"), "fp32") == Peak(3.5, "logging.peak_tflops")
    state = torch.get_rng_state()
    measured = device_peak(None, torch.device("cpu"), "fp32")
    assert measured.tflops is not None
    assert 1e-4 < measured.tflops < 1e3
    assert "matrix product" in measured.origin
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_is_logged_in_full_digits_and_drawn(tmp_path, capsys):
    made = recorder(tmp_path, meter())
    made.start({"run": "tiny"})
    for number in range(1, 5):
        step(made, number, loss_sum=32 * (0.1 + 0.2) + number)
    made.validation(4, [ValidationResult("code", nats=100.0, target_tokens=50, num_bytes=200)])
    made.checkpoint(Saved(4, tmp_path / "checkpoints" / "step-00000004", "routine", 0.25, 0.125, "no room to delete"))
    made.checkpoint_failed(Dropped(4, "rank 1: No space left on device", 0.5))
    made.end(4, "finished")
    made.close()

    lines = read_log(tmp_path)
    assert [line["kind"] for line in lines] == ["start", *["step"] * 4, "validation", "checkpoint", "checkpoint_failed", "end"]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["loss"] for line in steps] == [(32 * (0.1 + 0.2) + number) / 32 for number in range(1, 5)]
    assert [line["tokens"] for line in steps] == [32, 64, 96, 128]
    fields = {"step", "stage", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "tflops", "mfu", "seconds"}
    fields |= {"loader_seconds"}
    assert fields <= set(steps[0])
    validation = lines[5]
    assert validation["loss"] == 2.0
    assert validation["bits_per_byte"] == pytest.approx(100 / np.log(2) / 200)
    saved, failed = lines[6], lines[7]
    assert (saved["seconds"], saved["stall_seconds"], saved["form"], saved["folder"]) == (0.25, 0.125, "routine", "step-00000004")
    assert (failed["step"], failed["reason"], failed["stall_seconds"]) == (4, "rank 1: No space left on device", 0.5)
    assert (validation["target_tokens"], validation["bytes"], validation["source"]) == (50, 200, "code")

    drawn = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in drawn.Scalars("train/loss")] == [1, 2, 3, 4]
    assert drawn.Scalars("validation/code/bits_per_byte")[0].value == pytest.approx(validation["bits_per_byte"], rel=1e-6)

    shown = capsys.readouterr().err
    assert [shown.count(f"step {number}/4") for number in range(1, 5)] == [1, 1, 0, 1]  # the first, each second one, the last
    for part in (
        "loss 0.",
        "lr 1.000e-01",
        "grad 0.500",
        "tokens/s",
        "TFLOP/s",
        "MFU",
        "ETA",
        "told",
        "bits per byte: code 0.72",
        "warning: no room",
    ):
        assert part in shown


@pytest.mark.parametrize("bad", [{"loss_sum": float("nan")}, {"loss_sum": float("inf")}, {"grad_norm": float("nan")}])
def test_divergence_is_said_and_never_logged_as_a_step(tmp_path, bad):
    made = recorder(tmp_path, meter())
    with pytest.raises(Diverged, match="step 3: loss"):
        step(made, 3, **bad)
    made.close()
    assert [line["kind"] for line in read_log(tmp_path)] == ["diverged"]


def test_a_validation_that_is_no_number_is_divergence_in_every_process(tmp_path):
    bad = [ValidationResult("code", nats=float("inf"), target_tokens=50, num_bytes=200)]
    made, other = recorder(tmp_path, meter()), recorder(tmp_path / "other", meter(), main=False)
    for one in (made, other):
        with pytest.raises(Diverged, match="step 4: validation loss on code inf"):
            one.validation(4, bad)
        one.close()
    (line,) = read_log(tmp_path)
    assert (line["kind"], line["step"], line["source"], line["loss"]) == ("diverged", 4, "code", "inf")


def test_a_full_disk_under_the_console_ends_nothing(tmp_path, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        made = recorder(tmp_path, meter())
        made.start({})
        step(made, 1)
        made.checkpoint_failed(Dropped(1, "No space left on device", 0.5))
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
        made.close()
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert [line["kind"] for line in read_log(tmp_path)] == ["start", "step", "checkpoint_failed"]


def test_lines_that_a_full_disk_refused_do_not_go_into_the_successors_log(tmp_path, monkeypatch):
    held = [True]
    lock = cast(RunLock, SimpleNamespace(is_held=lambda: held[0]))
    made = Recorder(tmp_path, LoggingConfig(tensorboard=False), meter(), lock, first_step=0, num_steps=4, tokens=0)

    def full(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LogFile, "_write", full)
        made.start({})
    held[0] = False
    made.close()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_a_resumed_run_goes_on_counting_and_hides_the_steps_made_twice(tmp_path):
    first = recorder(tmp_path, meter())
    first.start({})
    for number in (1, 2, 3):
        step(first, number)
    first.close()
    second = recorder(tmp_path, meter(), first_step=2, tokens=64)
    second.start({})
    step(second, 3, loss_sum=3200.0)
    second.close()
    assert [(line["step"], line["loss"], line["tokens"]) for line in read_log(tmp_path) if line["kind"] == "step"] == [
        (1, 2.0, 32),
        (2, 2.0, 64),
        (3, 100.0, 96),
    ]
    drawn = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in drawn.Scalars("train/loss")] == [(1, 2.0), (2, 2.0), (3, 100.0)]


def test_who_was_replaced_writes_no_line(tmp_path):
    made = recorder(tmp_path, meter(), held=False)
    made.start({})
    step(made, 1)
    made.close()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_lines_that_a_full_disk_refused_come_later_and_whole(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "log.jsonl")
    log.append({"kind": "step", "step": 1})
    written, full = log._handle.write, True

    def refuse(data):
        if full and len(data) < 40:
            return written(data[:5])  # a torn line, then nothing
        if full:
            raise OSError(28, "No space left on device")
        return written(data)

    monkeypatch.setattr(log, "_handle", SimpleNamespace(write=refuse, fileno=log._handle.fileno, close=log._handle.close))
    log.append({"kind": "step", "step": 2, "text": "x" * 40})
    log.append({"kind": "step", "step": 3})
    log.sync()
    assert [line["step"] for line in read_log(tmp_path)] == [1]
    full = False
    log.append({"kind": "step", "step": 4})
    log.close()
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_loading_is_a_part_of_the_step():
    metered = meter(seconds=0.0)
    with metered.timed():
        with metered.loading():
            time.sleep(0.02)
        time.sleep(0.02)
    speed = metered.speed(32, LENGTH)
    assert 0.02 <= speed.loader_seconds <= speed.seconds - 0.02


def test_other_processes_write_nothing_but_see_divergence(tmp_path, capsys):
    made = recorder(tmp_path / "run", meter(), main=False)
    made.start({})
    step(made, 1)
    assert made.tokens == 32
    with pytest.raises(Diverged):
        step(made, 2, loss_sum=float("nan"))
    made.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds, words", [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "01:00:00"), (273669, "3 d 04:01:09")])
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_to_stop_and_its_echo_changes_nothing(number, capfd):
    outside = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup, or in the background of a shell
    try:
        with StopRequest() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert stop.requested
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    assert capfd.readouterr().err.count("finishing this step") == 1


def test_signals_that_were_to_be_ignored_are(monkeypatch):
    """nohup and the background jobs of a shell; SIGTERM and SIGUSR1 are heard all the same."""
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert stop_signals() == [signal.SIGTERM, signal.SIGUSR1]


def test_a_worker_that_has_left_in_good_order_hears_no_echo(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "1")
    try:
        with StopRequest():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for number in stop_signals() + [signal.SIGHUP, signal.SIGINT]:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before)


def test_a_second_interrupt_later_leaves_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop._since -= 10.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_bytes_are_added_up_as_batches_pass():
    batch = SimpleNamespace(target_bytes=torch.tensor([6, 5]), window_ids=torch.tensor([0, 1]))
    counter, advanced = ByteCounter(), []
    assert list(counter.counting([batch, batch], SimpleNamespace(advance=advanced.append))) == [batch, batch]
    assert counter.num_bytes == 22
    assert advanced == [2, 2]
