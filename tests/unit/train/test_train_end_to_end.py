"""`codemix train`: learns, and resumes bit for bit after being stopped, crashed, killed or damaged."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from megatron_codemix.checkpoint import Checkpoint, step_folders
from megatron_codemix.cli import main
from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.engine import MegatronEngine, StepResult
from megatron_codemix.train import finished, read_log
from megatron_codemix.train.log import LogFile
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.run import Run

STEPS = 12


def stop_at(monkeypatch, step: int, action) -> None:
    """Do something right after update number `step` was logged."""
    original = Recorder.step

    def step_and_act(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            action()

    monkeypatch.setattr(Recorder, "step", step_and_act)


def test_a_run_learns_and_leaves_what_the_formats_say(reference, capsys, tiny):
    lines = read_log(reference)
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["stage"] for line in steps] == ["first"] * 8 + ["second"] * 4
    assert [line["tokens"] for line in steps] == [tiny.batch * tiny.sequence * step for step in range(1, STEPS + 1)]
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert all(0 < line["mfu"] < 10 for line in steps)
    validations = {(line["step"], line["source"]): line for line in lines if line["kind"] == "validation"}
    assert set(validations) == {(step, source) for step in (5, 10, STEPS) for source in ("code", "text")}
    assert validations[STEPS, "code"]["bits_per_byte"] < validations[5, "code"]["bits_per_byte"]
    assert all(line["target_tokens"] == 6 * (tiny.sequence if line["step"] <= 8 else 2 * tiny.sequence) for line in validations.values())
    assert finished(reference)

    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]
    checkpoint = Checkpoint.open(reference)
    assert checkpoint.step == STEPS
    assert checkpoint.config() == load_config(reference / "config.yaml", RunConfig)
    ledger = checkpoint.ledger()["sources"]
    assert {name: entry["tokens"] for name, entry in ledger.items()} == {"code": 768, "text": 768}
    assert checkpoint.record.plan == json.loads((reference / "plan.json").read_text())["fingerprint"]
    assert list((reference / "tensorboard").iterdir())
    assert (reference / "train.lock").read_bytes() == b""


def test_a_finished_run_says_so(corpus, reference, capsys, tiny):
    log = (reference / "log.jsonl").read_bytes()
    assert tiny.train(reference.parent / "run.yaml") == 0
    assert "finished already" in capsys.readouterr().out
    assert (reference / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("step", [1, 4, 8, 10])
def test_stopped_by_a_signal_and_resumed_it_is_bit_identical(run_file, reference, monkeypatch, capsys, step, tiny):
    with monkeypatch.context() as patched:
        stop_at(patched, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert tiny.train(run_file) == 75
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step == step
    assert f"stopped at step {step}" in capsys.readouterr().out
    assert read_log(run_folder)[-1] | {"time": 0} == {
        "kind": "end",
        "step": step,
        "reason": "stopped",
        "tokens": step * tiny.batch * tiny.sequence,
        "time": 0,
    }
    assert tiny.train(run_file) == 0
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)
    attempts = [
        (interval["first"], interval["end"], interval["attempt"]) for interval in Checkpoint.open(run_folder).lineage()["intervals"]
    ]
    assert attempts == [(0, step, 0), (step, STEPS, 1)]


def test_sources_may_change_places_in_the_config(run_file, reference, monkeypatch, tiny):
    """The order of samples does not depend on the lines of a YAML file; nor may what is counted."""
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert tiny.train(run_file) == 75
    raw = yaml.safe_load(run_file.read_text())
    raw["sources"] = dict(reversed(raw["sources"].items()))
    run_file.write_text(yaml.safe_dump(raw, sort_keys=False))
    assert tiny.train(run_file) == 0
    assert list(Checkpoint.open(run_folder).ledger()["sources"]) == ["text", "code"]
    assert sorted(tiny.figures(run_folder), key=str) == sorted(tiny.figures(reference), key=str)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)
    assert main(["audit", str(run_folder)]) == 0


def test_a_bf16_run_resumes_bit_identically_too(run_file, monkeypatch, tmp_path, tiny):
    whole, parted = ([f"output={tmp_path / name}", "precision=bf16"] for name in ("whole", "parted"))
    assert tiny.train(run_file, *whole) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 5, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert tiny.train(run_file, *parted) == 75
    assert tiny.train(run_file, *parted) == 0
    assert tiny.figures(tmp_path / "parted") == tiny.figures(tmp_path / "whole")
    assert tiny.final_state(tmp_path / "parted") == tiny.final_state(tmp_path / "whole")


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def test_a_crash_costs_only_the_steps_since_the_checkpoint(run_file, reference, monkeypatch, tiny):
    with monkeypatch.context() as patched:
        stop_at(patched, 8, crash)
        with pytest.raises(Crash):
            tiny.train(run_file)
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step in (3, 6)  # that of step 6 was being written
    with open(run_folder / "log.jsonl", "ab") as log:
        log.write(b'{"kind": "step", "st')  # as a power cut would leave it
    assert tiny.train(run_file, "micro_batch_size=2") == 0
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_killed_with_signal_9_it_continues_bit_identically(run_file, reference, tiny):
    run_folder = run_file.parent / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "megatron_codemix.cli", "train", str(run_file)]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    # stderr ends only when no process of the run is left: communicate() below also shows that a kill leaves no orphan
    deadline = time.monotonic() + 120
    while not (run_folder / "checkpoints" / "step-00000003").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.kill()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, errors
    assert not finished(run_folder)
    assert tiny.train(run_file) == 0
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_a_damaged_newest_checkpoint_costs_a_warning_and_some_steps(run_file, reference, monkeypatch, capsys, tiny):
    with monkeypatch.context() as patched:
        stop_at(patched, 7, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert tiny.train(run_file) == 75
    run_folder = run_file.parent / "run"
    part = max((run_folder / "checkpoints" / "step-00000007" / "weights").glob("*.safetensors"))
    os.truncate(part, part.stat().st_size - 1)
    assert tiny.train(run_file) == 0
    shown = capsys.readouterr().err
    assert f"warning: {part}" in shown
    assert "damaged-step-00000007" in shown
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_a_validation_missed_by_a_crash_is_made_up_for(run_file, reference, monkeypatch, tiny):
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "validate", lambda self, done: crash() if done == STEPS else None)
        with pytest.raises(Crash):
            tiny.train(run_file, "validation.every_steps=0")
    assert Checkpoint.open(run_folder).step == STEPS
    assert not finished(run_folder)
    assert tiny.train(run_file, "validation.every_steps=0") == 0
    assert tiny.figures(run_folder)[-2:] == tiny.figures(reference)[-2:]
    assert finished(run_folder)


def test_before_a_checkpoint_is_published_its_log_is_on_disk_and_the_folder_still_ours(run_file, monkeypatch, capsys, tiny):
    run_folder, synced = run_file.parent / "run", []
    original = LogFile.sync

    def sync(self):
        original(self)
        synced.append((read_log(run_folder)[-1].get("step"), len(step_folders(run_folder))))

    monkeypatch.setattr(LogFile, "sync", sync)
    stop_at(monkeypatch, 5, lambda: (run_folder / "train.lock").write_text('{"pid": 1, "host": "elsewhere"}'))
    assert tiny.train(run_file, "checkpoint.asynchronous=false") == 2
    assert synced[0] == (3, 0)
    assert "another process has taken this folder over" in capsys.readouterr().err
    assert Checkpoint.open(run_folder).step == 3


def test_divergence_ends_with_one_line_and_saves_nothing(run_file, monkeypatch, capsys, tiny):
    original = MegatronEngine.train_step

    def diverge(self, batches, rate, accept):
        result = original(self, batches, rate, accept)
        return StepResult(float("nan"), result.target_tokens, result.grad_norm) if self.step == 5 else result

    monkeypatch.setattr(MegatronEngine, "train_step", diverge)
    assert tiny.train(run_file) == 1
    assert "codemix train: step 5: loss nan" in capsys.readouterr().err
    run_folder = run_file.parent / "run"
    assert Checkpoint.open(run_folder).step == 3, "what was in flight, of a step before, is published"
    assert [line["kind"] for line in read_log(run_folder) if line["kind"] in ("diverged", "end")] == ["diverged"]
