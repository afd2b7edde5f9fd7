"""Saving while training goes on: full disks, replaced processes, kills inside a save, and what a run may be resumed with."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_codemix.checkpoint import Checkpoint, phases, publish
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.train import finished, read_log
from megatron_codemix.train.recorder import Recorder

STEPS = 12


def at_step(monkeypatch, actions: dict) -> None:
    """Do something right after the updates with these numbers were logged."""
    original = Recorder.step

    def step_and_act(self, done, *arguments):
        original(self, done, *arguments)
        actions.get(done, lambda: None)()

    monkeypatch.setattr(Recorder, "step", step_and_act)


def kinds(run_folder: Path) -> list[str]:
    return [line["kind"] for line in read_log(run_folder)]


def steps_saved(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def limit_file_size(size: int) -> None:
    """Any file of this process that grows beyond `size` meets an OSError, as on a full disk; -1: no limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def small_files():
    """`limit_file_size`, lifted at the end."""
    yield limit_file_size
    limit_file_size(-1)


def test_the_last_checkpoint_is_neutral_and_the_others_routine(reference):
    lines = [line for line in read_log(reference) if line["kind"] == "checkpoint"]
    assert [(line["step"], line["form"]) for line in lines] == [(3, "routine"), (6, "routine"), (9, "routine"), (12, "neutral")]
    assert all(0 < line["stall_seconds"] <= line["seconds"] + 0.5 for line in lines)
    forms = {name: Checkpoint.open(reference / "checkpoints" / name).record.form for name in steps_saved(reference)}
    assert forms == {"step-00000009": "routine", "step-00000012": "neutral"}
    neutral = reference / "checkpoints" / "step-00000012" / "weights"
    assert [path.name for path in neutral.iterdir()] == ["neutral-00000-of-00001.safetensors"]
    steps = [line for line in read_log(reference) if line["kind"] == "step"]
    assert all(0 < line["loader_seconds"] < line["seconds"] for line in steps)
    start = read_log(reference)[0]
    assert (start["attempt"], start["layout"]) == (0, "one process")
    assert Checkpoint.open(reference).record.revision == start["revision"]


def test_waiting_for_each_save_gives_the_same_files(run_file, reference, tiny):
    assert tiny.train(run_file, "checkpoint.asynchronous=false") == 0
    assert tiny.final_state(run_file.parent / "run") == tiny.final_state(reference)
    assert tiny.figures(run_file.parent / "run") == tiny.figures(reference)


def test_some_checkpoints_are_kept_for_ever(run_file, tiny):
    settings = ("checkpoint.every_steps=1", "checkpoint.keep=2", "checkpoint.keep_every_steps=4", "checkpoint.final_form=routine")
    assert tiny.train(run_file, *settings, "validation.every_steps=0") == 0
    assert steps_saved(run_file.parent / "run") == [f"step-{step:08d}" for step in (4, 8, 11, 12)]


def test_dropout_resumes_bit_identically(run_file, tmp_path, monkeypatch, tiny):
    dropout = ["model.hidden_dropout=0.2", "model.attention_dropout=0.1"]
    assert tiny.train(run_file, f"output={tmp_path / 'whole'}", *dropout) == 0
    with monkeypatch.context() as patched:
        at_step(patched, {5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert tiny.train(run_file, f"output={tmp_path / 'parted'}", *dropout) == 75
    assert tiny.train(run_file, f"output={tmp_path / 'parted'}", *dropout) == 0
    assert tiny.figures(tmp_path / "parted") == tiny.figures(tmp_path / "whole")
    assert tiny.final_state(tmp_path / "parted") == tiny.final_state(tmp_path / "whole")


def test_a_disk_that_refuses_a_save_costs_that_save_alone(run_file, reference, monkeypatch, capsys, small_files, tiny):
    run_folder = run_file.parent / "run"
    actions = {5: lambda: small_files(100_000), 8: lambda: small_files(-1)}
    with monkeypatch.context() as patched:
        at_step(patched, actions)
        # waited for, so that it is the save of step 6 that meets the limit
        assert tiny.train(run_file, "checkpoint.asynchronous=false") == 0
    failed = [line for line in read_log(run_folder) if line["kind"] == "checkpoint_failed"]
    assert [line["step"] for line in failed] == [6]
    assert "File too large" in failed[0]["reason"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "the checkpoint of step 6 was not saved" in warnings[0]
    assert steps_saved(run_folder) == ["step-00000009", "step-00000012"]
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


@pytest.mark.parametrize("stop_after, remedy", [(7, "continues from step-00000006"), (None, "final_form=routine needs half of it")])
def test_a_refused_last_save_ends_with_one_line(run_file, reference, monkeypatch, capsys, small_files, tiny, stop_after, remedy):
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:

        def stop() -> None:
            small_files(100_000)
            os.kill(os.getpid(), signal.SIGTERM)

        at_step(patched, {stop_after: stop} if stop_after else {STEPS - 1: lambda: small_files(100_000)})
        assert tiny.train(run_file, "checkpoint.asynchronous=false") == 1
    small_files(-1)
    shown = capsys.readouterr().err
    said = [line for line in shown.splitlines() if line.startswith("codemix train:")]
    assert len(said) == 1 and "could not be saved" in said[0] and "make room below" in said[0] and remedy in said[0]
    assert "Traceback" not in shown
    assert not [name for name in steps_saved(run_folder) if name.startswith(".")]
    assert not finished(run_folder)
    assert tiny.train(run_file) == 0
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_who_was_replaced_publishes_nothing_and_logs_nothing_more(run_file, monkeypatch, capsys, tiny):
    """The other one comes while the save of step 3 is being written."""
    run_folder = run_file.parent / "run"
    original = phases.write_routine

    def slow(*arguments):
        while not taken:
            time.sleep(0.01)
        return original(*arguments)

    taken = []

    def take_over() -> None:
        written = json.loads((run_folder / "attempt.json").read_text())
        (run_folder / "attempt.json").write_text(json.dumps({**written, "attempt": 1, "host": "elsewhere"}))
        taken.append(True)

    with monkeypatch.context() as patched:
        patched.setattr(publish, "write_routine", slow)
        at_step(patched, {5: take_over})
        assert tiny.train(run_file) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("codemix train:")]
    assert said == [f"codemix train: {run_folder}: another process has taken this folder over; nothing more is written from here"]
    assert not [name for name in steps_saved(run_folder) if name.startswith("step-")]
    assert [line["step"] for line in read_log(run_folder) if line["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert tiny.train(run_file) == 0
    assert json.loads((run_folder / "attempt.json").read_text())["attempt"] == 2
    assert not [name for name in steps_saved(run_folder) if name.startswith(".")]


_FREEZES = """
import os, signal, sys
from megatron_codemix.cli import main
from megatron_codemix.train.recorder import Recorder
logged = Recorder.step
def step(self, done, *arguments):
    logged(self, done, *arguments)
    if done == 4:
        os.kill(os.getpid(), signal.SIGSTOP)
Recorder.step = step
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_that_was_cut_off_comes_back_to_a_finished_run(run_file, reference, tiny):
    """It freezes behind step 4, as a node behind a cut network; its user deletes the lock, as the message says, and starts anew."""
    run_folder = run_file.parent / "run"
    command = [sys.executable, "-c", _FREEZES, "train", str(run_file)]
    stale = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    try:
        _, status = os.waitpid(stale.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert tiny.train(run_file) == 2, "it still has the lock"
        (run_folder / "train.lock").unlink()
        assert tiny.train(run_file) == 0
        log = (run_folder / "log.jsonl").read_bytes()
        saved = steps_saved(run_folder)
        os.kill(stale.pid, signal.SIGCONT)
        _, errors = stale.communicate(timeout=120)
    finally:
        stale.kill()
        stale.wait()
    assert stale.returncode == 2, errors
    assert f"codemix train: {run_folder}: another process has taken this folder over" in errors
    assert "Traceback" not in errors
    assert (run_folder / "log.jsonl").read_bytes() == log
    assert [name for name in steps_saved(run_folder) if name.startswith("step-")] == saved == ["step-00000009", "step-00000012"]
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_killed_inside_a_save_it_continues_bit_identically(run_file, reference, tiny):
    """As soon as the hidden folder of a save appears; then again, with the process that continues."""
    run_folder = run_file.parent / "run"
    command = [sys.executable, "-m", "megatron_codemix.cli", "train", str(run_file)]
    for step in (3, 6):
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        store, deadline = run_folder / "checkpoints", time.monotonic() + 240
        pattern = f".step-{step:08d}.attempt-*.tmp/weights/.*" if step == 3 else f".step-{step:08d}.attempt-*.tmp"
        while not list(store.glob(pattern)) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        child.kill()
        child.wait(60)
        assert all(Checkpoint.open(path) for path in store.glob("step-*"))
    assert tiny.train(run_file) == 0
    assert not list((run_folder / "checkpoints").glob(".*"))
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_a_defect_in_the_thread_of_a_save_ends_the_run(run_file, monkeypatch, tiny):
    def broken(*arguments):
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(publish, "write_routine", broken)
    with pytest.raises(RuntimeError, match="the save of step 3 failed on rank 0: a defect of ours"):
        tiny.train(run_file)


def test_what_may_be_resumed_is_asked_for(run_file, monkeypatch, capsys, tiny):
    for more in ((), ("--nproc", "2", "micro_batch_size=1")):
        assert tiny.train(run_file, "--resume", "require", *more) == 2
        assert "holds no checkpoint, and --resume require was asked for" in capsys.readouterr().err
        assert not (run_file.parent / "run").exists(), "nothing is begun"
    with monkeypatch.context() as patched:
        at_step(patched, {4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert tiny.train(run_file, "--resume", "never") == 75
    capsys.readouterr()
    assert tiny.train(run_file, "--resume", "never") == 2
    assert "holds checkpoints, and --resume never was asked for" in capsys.readouterr().err
    assert tiny.train(run_file, "--resume", "require") == 0
    assert "after step 4" in capsys.readouterr().err
    assert tiny.train(run_file, "--resume", "never") == 2


def test_another_layout_continues_and_says_so(run_file, monkeypatch, capsys, tiny):
    with monkeypatch.context() as patched:
        at_step(patched, {4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert tiny.train(run_file) == 75
    path = run_file.parent / "run" / "checkpoints" / "step-00000004" / "checkpoint.json"
    record = json.loads(path.read_text())
    record["layout"] |= {"tensor": 2, "data": 2, "world_size": 4}
    path.write_text(json.dumps(record))
    assert tiny.train(run_file, "parallel.distributed_optimizer=true") == 0
    assert "continuing a checkpoint of TP2×DP2 as one process after step 4" in capsys.readouterr().err


def test_weights_of_another_shape_are_never_loaded(run_file, monkeypatch, capsys, tiny):
    """The record is right, the files are not: refused by the engine, nothing is filled up."""
    run_folder = run_file.parent / "run"
    with monkeypatch.context() as patched:
        at_step(patched, {4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert tiny.train(run_file) == 75
        assert tiny.train(run_file, f"output={run_folder.parent / 'wider'}", "model.ffn_hidden_size=128") == 75
    mine, wider = (Checkpoint.open(folder).folder for folder in (run_folder, run_folder.parent / "wider"))
    (name,) = [path.name for path in (mine / "weights").iterdir()]
    shutil.copy(wider / "weights" / name, mine / "weights" / name)
    record, other = (json.loads((folder / "checkpoint.json").read_text()) for folder in (mine, wider))
    record["files"][f"weights/{name}"] = other["files"][f"weights/{name}"]
    (mine / "checkpoint.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert tiny.train(run_file) == 2
    assert "mlp.linear_fc1" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["checkpoints", "run", "above"])
def test_a_file_where_a_folder_belongs_is_one_line(run_file, tmp_path, capsys, tiny, place):
    output = tmp_path / "output"
    wrong = {"checkpoints": output / "checkpoints", "run": output, "above": output}[place]
    wrong.parent.mkdir(exist_ok=True)
    wrong.write_text("a file")
    assert tiny.train(run_file, f"output={output / 'run' if place == 'above' else output}") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "choose another 'output'" in said[0]
    assert wrong.read_text() == "a file"


def test_a_folder_that_cannot_be_written_to_is_one_line(run_file, tmp_path, capsys, monkeypatch, tiny):
    """Root may write anywhere, so the refusal is the system call's own."""
    output = tmp_path / "output"
    original = os.open

    def refuse(path, *arguments, **named):
        if str(path).startswith(str(output)):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert tiny.train(run_file, f"output={output}") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be written to (Permission denied); choose another 'output'" in said[0]


def test_a_learning_rate_that_explodes_leaves_the_save_in_flight_whole(run_file, monkeypatch, tiny):
    original = MegatronEngine.train_step

    def diverge(self, batches, rate, accept):
        result = original(self, batches, rate, accept)
        return type(result)(float("inf"), result.target_tokens, result.grad_norm) if self.step == 4 else result

    monkeypatch.setattr(MegatronEngine, "train_step", diverge)
    assert tiny.train(run_file) == 1
    assert Checkpoint.open(run_file.parent / "run").step == 3


def test_a_disk_without_room_at_the_start_is_one_line(run_file, capsys, small_files, tiny):
    small_files(500)  # attempt.json fits, plan.json does not
    assert tiny.train(run_file) == 1
    small_files(-1)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be written to (File too large); make room" in said[0]
    assert tiny.train(run_file) == 0
