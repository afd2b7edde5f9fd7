"""A run continues although its log or a file of a checkpoint cannot be read; what keeps it from that is one line."""

import errno
import os
import signal

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.pieces import reader
from megatron_codemix.train import finished, read_log
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.watchdog import Watchdog


def stop_behind(monkeypatch, step: int) -> None:
    original = Recorder.step

    def step_and_stop(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "step", step_and_stop)


def test_a_power_cut_in_the_log_does_not_keep_a_run_from_continuing(run_file, reference, monkeypatch, capsys, tiny):
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        stop_behind(patched, 5)  # where validation is due, so that the log is asked whether it was made
        assert tiny.train(run_file) == 75
    path = run_folder / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    third = next(number for number, line in enumerate(lines) if b'"step": 3,' in line)
    path.write_bytes(b"".join([*lines[:third], bytes(len(lines[third]) - 1) + b"\n", *lines[third + 1 :]]))
    capsys.readouterr()
    assert tiny.train(run_file) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "1 damaged line(s) were left out; the log as it was is damaged-log.jsonl" in warnings[0]
    assert finished(run_folder)
    assert [line for line in tiny.figures(reference) if line not in tiny.figures(run_folder)] == [tiny.figures(reference)[2]]
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_a_damaged_log_of_a_finished_run_is_mended_and_nothing_is_trained(run_file, tiny):
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    before = tiny.final_state(run_folder)
    path = run_folder / "log.jsonl"
    path.write_bytes(path.read_bytes() + b"\0\0\n")
    assert tiny.train(run_file) == 0
    assert finished(run_folder)
    assert len([line for line in read_log(run_folder) if line["kind"] == "step"]) == 12
    assert tiny.final_state(run_folder) == before


def test_verifying_and_loading_beat(run_file, monkeypatch, tiny):
    with monkeypatch.context() as patched:
        stop_behind(patched, 4)
        assert tiny.train(run_file) == 75
    beats = []
    original = Watchdog.beat

    def beat(self, step, what):
        beats.append((step, what))
        original(self, step, what)

    monkeypatch.setattr(Watchdog, "beat", beat)
    assert tiny.train(run_file) == 0
    words = list(dict.fromkeys(beats))
    assert words[:4] == [(0, "start"), (0, "verification"), (4, "loading"), (5, "step")]
    assert beats.count((4, "loading")) > 20, "every tensor, and its moments"


def test_a_file_that_cannot_be_read_any_more_while_it_is_loaded_is_one_line(run_file, monkeypatch, capsys, tiny):
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        stop_behind(patched, 4)
        assert tiny.train(run_file) == 75
    capsys.readouterr()

    def refuse(*arguments):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "weights")

    with monkeypatch.context() as patched:
        patched.setattr(reader, "read_elements", refuse)
        assert tiny.train(run_file) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("codemix train:")]
    assert said == ["codemix train: weights: Stale file handle; mend that, then start the same command again"]
    assert Checkpoint.open(run_folder).step == 4
    assert tiny.train(run_file) == 0
