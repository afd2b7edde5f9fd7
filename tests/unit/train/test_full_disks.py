"""Disks that are full under a real run: under its folder, its last save alone, its output, its stacks."""

import os
import shutil
import subprocess
import sys

import pytest

from megatron_codemix.cli import main
from megatron_codemix.errors import UserError
from megatron_codemix.train import finished, read_log
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.watchdog import Watchdog

STEPS = 12


def at_step(monkeypatch, actions: dict) -> None:
    """Do something right after the updates with these numbers were logged."""
    original = Recorder.step

    def step_and_act(self, done, *arguments):
        original(self, done, *arguments)
        actions.get(done, lambda: None)()

    monkeypatch.setattr(Recorder, "step", step_and_act)


def test_stacks_that_cannot_be_opened_are_one_line(tmp_path):
    (tmp_path / "stacks").write_text("a file")
    with pytest.raises(UserError, match=r"attempt-0\.txt: cannot be written to \(.*\); make room"):
        Watchdog(tmp_path / "stacks", 0, 0, 60.0).__enter__()


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 3 MiB at tmp_path/run."""
    folder = tmp_path / "run"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_a_run_outlives_a_full_file_system(tiny_disk, run_file, reference, monkeypatch, tiny):
    """Log, event file and heartbeat lie on it too."""
    ballast = tiny_disk / "ballast"

    def fill() -> None:
        with open(ballast, "wb", buffering=0) as handle:
            try:
                while True:
                    handle.write(bytes(4096))
            except OSError:
                pass

    with monkeypatch.context() as patched:
        at_step(patched, {4: fill, 8: ballast.unlink})
        assert tiny.train(run_file, "checkpoint.asynchronous=false", "checkpoint.keep=1") == 0
    assert [line["step"] for line in read_log(tiny_disk) if line["kind"] == "checkpoint_failed"] == [6]
    assert tiny.figures(tiny_disk) == tiny.figures(reference)
    assert tiny.final_state(tiny_disk) == tiny.final_state(reference)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_room_for_one_form_of_the_last_state_saves_it(tiny_disk, run_file, reference, monkeypatch, capsys, tiny):
    """The only save of a run that asks for the neutral form: the routine one is there, whole, and `reshard` makes the other."""
    size = sum(path.stat().st_size for path in (reference / "checkpoints" / "step-00000012" / "weights").iterdir())

    def fill() -> None:
        free = shutil.disk_usage(tiny_disk).free
        (tiny_disk / "ballast").write_bytes(bytes(free - size - size // 2))

    with monkeypatch.context() as patched:
        at_step(patched, {STEPS - 1: fill})
        assert tiny.train(run_file, "checkpoint.every_steps=0", "validation.every_steps=0") == 0
    assert "there was no writing the neutral form (No space left on device" in capsys.readouterr().err
    assert [line["form"] for line in read_log(tiny_disk) if line["kind"] == "checkpoint"] == ["routine"]
    assert [path.name for path in (tiny_disk / "checkpoints").iterdir()] == ["step-00000012"]
    out = run_file.parent / "whole"
    assert main(["checkpoint", "reshard", str(tiny_disk), str(out)]) == 0
    (written,), (wanted,) = ((folder / "weights").iterdir() for folder in (out, reference / "checkpoints" / "step-00000012"))
    assert written.read_bytes() == wanted.read_bytes()


def test_output_into_a_file_on_a_full_disk_ends_no_run(run_file, reference, tiny):
    """`codemix train RUN.yaml > RUN/out.log 2>&1`, the usual thing."""
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "megatron_codemix.cli", "train", str(run_file)]
        assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=full, stderr=full).returncode == 0
    assert finished(run_file.parent / "run")
    assert tiny.final_state(run_file.parent / "run") == tiny.final_state(reference)
