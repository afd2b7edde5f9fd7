"""The launcher in small: workers that cannot be killed, early signals, what workers run and leave behind, what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_codemix import worker
from megatron_codemix.cli import main
from megatron_codemix.config import TimeoutConfig
from megatron_codemix.train import launch
from megatron_codemix.train.launch import Job
from megatron_codemix.train.pulse import PulseFile
from megatron_codemix.train.verdict import Outcome, Verdict
from megatron_codemix.train.workers import Relay, Worker


class Standing:
    """A worker that nothing ends, if asked to be so."""

    def __init__(self, rank: int, folder: Path, state: str) -> None:
        self.rank, self.state, self.error_file = rank, state, folder / f"error-{rank}"
        self.process = SimpleNamespace(pid=100 + rank)
        self.signals: list[int] = []
        self.killed_at: float | None = None
        self.exit_code: int | None = None
        self.has_failed = self.killed = False

    def poll(self) -> bool:
        return self.exit_code is not None

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.killed_at = self.killed_at or time.monotonic()

    def outcome(self) -> Outcome:
        return Outcome(self.rank, self.process.pid, self.exit_code or 0, 0.0, self.killed, None)


@pytest.fixture
def a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(launch, "KILL_SECONDS", 0.3)
    pulses = PulseFile(tmp_path / "pulse", 2, create=True)
    yield Job(pulses, TimeoutConfig(hang_seconds=0.2, join_seconds=600), None)
    pulses.close()


def test_a_worker_that_cannot_be_killed_is_left_behind(tmp_path: Path, a_job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """On a dead disk a process stays for ever: what is known is said at once, and the launcher leaves."""
    a_job.add(Standing(0, tmp_path, "D"))  # type: ignore[arg-type]
    a_job.pulses.write(0, 17, 0, "step")
    verdict = a_job.run(Relay([]))
    said = capsys.readouterr().err
    assert said.startswith("codemix train: no progress for 0.2 s")
    assert "rank 0: step 17" in said
    assert verdict == Verdict(1, ("rank 0 (process 100) cannot be killed (state D: it waits for a disk or a device)",))


def test_the_cause_is_named_although_a_peer_cannot_be_killed(tmp_path: Path, a_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.1)
    for rank in (0, 1):
        a_job.add(Standing(rank, tmp_path, "R"))  # type: ignore[arg-type]
    a_job.workers[0].exit_code = 3
    verdict = a_job.run(Relay([]))
    assert verdict.exit_code == 1
    assert "rank 0 of 1 (process 100) ended with exit code 3" in verdict.lines[0]
    assert verdict.lines[1:] == ("rank 1 (process 101) cannot be killed",)


def test_a_signal_that_comes_while_workers_are_started_reaches_all(tmp_path: Path, a_job: Job) -> None:
    workers = [Standing(rank, tmp_path, "R") for rank in range(3)]
    a_job.add(workers[0])  # type: ignore[arg-type]
    a_job.forward(signal.SIGTERM)
    a_job.add(workers[1])  # type: ignore[arg-type]
    a_job.forward(signal.SIGUSR1)
    a_job.add(workers[2])  # type: ignore[arg-type]
    assert [sorted(one.signals) for one in workers] == [sorted((signal.SIGTERM, signal.SIGUSR1))] * 3


def test_the_working_directory_lends_no_code_to_what_is_started(tmp_path: Path) -> None:
    (tmp_path / "megatron_codemix").mkdir()
    for name in ("types.py", "signal.py", "megatron_codemix/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('the code of another')")
    done = subprocess.run([*worker.codemix_command(), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    where = worker.codemix_command()
    where[where.index("-c") + 1] = (
        where[where.index("-c") + 1].replace("sys.exit(main())", "print(worker.__file__)").replace("cli import main", "cli import worker")
    )
    done = subprocess.run([*where], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == worker.__file__


def test_a_signal_to_a_worker_that_has_just_ended(tmp_path: Path) -> None:
    with socket.socket() as store:
        one = Worker(0, ["sh", "-c", "exit 3"], dict(os.environ), tmp_path, store)
        while Path(f"/proc/{one.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            time.sleep(0.01)
        one.signal(signal.SIGTERM)
        one.kill()
        assert one.poll()
    assert (one.exit_code, one.killed) == (3, False)
    one.signal(signal.SIGTERM)


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    with socket.socket() as store:
        one = Worker(0, ["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/child"], dict(os.environ), tmp_path, store)
        while not one.poll():
            time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)


def test_nproc_is_checked_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        """{name: r, output: out, tokenizer: t, sources: {code: {path: c}}, parallel: {tensor: 2},
        model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, ffn_hidden_size: 64},
        stages: [{name: s, tokens: 512, mixture: {code: 1}, batch_size: 4, sequence_length: 32,
                  learning_rate: {shape: constant, peak: 0.1}}]}"""
    )
    for option, words in (("3", "does not divide the 3 process(es)"), ("0", "--nproc 0: give the number"), ("-1", "give the number")):
        assert main(["train", str(run), "--nproc", option]) == 2
        assert words in capsys.readouterr().err
    assert main(["train", str(run)]) == 2
    assert "does not divide the 1 process(es)" in capsys.readouterr().err
    for option in (["--nproc", "2"], []):
        with monkeypatch.context() as patch:
            patch.setenv("SLURM_STEP_NUM_TASKS", "8")
            assert main(["train", str(run), *option]) == 2
        assert "8 tasks were started (SLURM_STEP_NUM_TASKS), but RANK is not set" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(worker, "begin", lambda: None)
    assert main(["train", str(run), "--nproc", "2"]) == 2
    assert "RANK is set" in capsys.readouterr().err
