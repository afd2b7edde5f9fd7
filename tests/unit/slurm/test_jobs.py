"""`codemix jobs` with a squeue of our own on the PATH."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_codemix.cli import main
from megatron_codemix.slurm.jobs import duration
from megatron_codemix.slurm.runstate import run_state, tail

Queue = Callable[..., None]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """queue([fields of a job, …], fails="…"): what squeue prints from now on."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def write(*jobs: dict[str, str], fails: str = "") -> None:
        usual = {"array": "7", "task": "N/A", "state": "RUNNING", "reason": "None", "nodes": "2", "name": "first"}
        usual |= {"submitted": "N/A", "started": "N/A", "ends": "N/A", "node_list": "n[1-2]", "comment": "(null)"}
        (programs / "lines").write_text("".join("\x1f".join({**usual, **job}.values()) + "\n" for job in jobs))
        said = f"echo '{fails}' >&2; exit 1" if fails else f"cat {programs}/lines"
        (programs / "squeue").write_text(f"#!/bin/sh\n{said}\n")
        (programs / "squeue").chmod(0o755)

    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return write


def write_run(folder: Path, steps: int = 40, **more: object) -> Path:
    """A run that has made some steps of 100, a second each."""
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    now = time.time()
    lines = [{"kind": "start", "first_step": 0, "num_steps": 100, "attempt": 1, "time": now - steps - 1}]
    for step in range(1, steps + 1):
        figures = {"loss": 5 - step / 100, "tokens": step * 64, "tokens_per_second": 1000.0 + step, "seconds": 0.5}
        lines.append({"kind": "step", "step": step, **figures, "time": now - steps + step, **more})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "attempt.json").write_text(json.dumps({"format_version": 1, "attempt": 1}))
    return folder


def rows(text: str) -> list[dict[str, str]]:
    """A table's rows, by its headings: columns stand where their heading does."""
    head, *lines = text.splitlines()
    words = [word for word in head.split("  ") if word]
    starts = []
    for word in words:
        starts.append(head.index(word.strip(), starts[-1] + 1 if starts else 0))
    ends = [*starts[1:], None]
    return [{word.strip(): line[start:end].strip() for word, start, end in zip(words, starts, ends)} for line in lines]


def test_a_training_job_and_its_run_are_one_line(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "a run")
    queue({"comment": f"codemix train {run}"}, {"array": "8", "name": "other", "comment": "not ours"})
    assert main(["jobs"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["job"] == "7" and row["name"] == "first" and row["state"] == "running" and row["nodes"] == "2"
    assert row["attempt"] == "1" and row["step"] == "40/100" and row["loss"] == "4.6000" and row["tokens/s"] == "1,030"
    assert row["left"] == "1 min" and row["checkpoint"] == "step 20"
    assert row["last line"].endswith("s ago")


def test_why_a_job_waits_is_said(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue({"state": "PENDING", "reason": "Resources", "comment": f"codemix train {tmp_path / 'new'}"})
    assert main(["jobs"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["state"] == "waiting" and row["why"] == "Resources"


def test_an_array_is_one_line_that_counts(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results.slurm"
    (folder / "units").mkdir(parents=True)
    (folder / "submit-1").mkdir()
    facts = {"job": "12", "kind": "evaluate", "name": "eval", "step": "evaluate", "units": ["a", "b", "c"], "submitted": 1.0}
    (folder / "submit-1" / "submitted.json").write_text(json.dumps(facts))
    (folder / "units" / "a.json").write_text(json.dumps({"returncode": 0}))
    (folder / "units" / "b.json").write_text(json.dumps({"returncode": 1}))
    comment = f"codemix evaluate {folder}"
    queue(
        *(
            {"array": "12", "task": str(task), "state": state, "comment": comment}
            for task, state in enumerate(("COMPLETED", "FAILED", "RUNNING"))
        )
    )
    assert main(["jobs"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["job"] == "12" and row["state"] == "1 done, 1 failed, 1 running" and row["step"] == "1/3 tasks"
    assert row["why"] == "failed: b"
    assert main(["jobs", str(tmp_path / "results"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == {"done": 1, "all": 3, "failed": ["b"]} and [job["task"] for job in found["jobs"]] == ["0", "1", "2"]


def test_of_each_step_the_newest_submission_is_shown(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out.slurm"
    for number, step in enumerate(("clean", "merge", "clean")):
        (folder / f"submit-{number}").mkdir(parents=True)
        facts = {"job": str(20 + number), "kind": "prep", "name": f"prep-{step}", "step": step, "units": [step], "submitted": number}
        (folder / f"submit-{number}" / "submitted.json").write_text(json.dumps(facts))
    queue({"array": "21", "state": "CANCELLED", "comment": f"codemix prep {folder}"})
    assert main(["jobs", str(tmp_path / "out")]) == 0
    merge, clean = rows(capsys.readouterr().out)
    assert (merge["name"], merge["job"], merge["state"]) == ("prep-merge", "21", "cancelled")
    assert (clean["name"], clean["job"], clean["state"], clean["step"]) == ("prep-clean", "–", "ended", "0/1 tasks")


def test_a_finished_run_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "done", steps=100)
    (run / "finished.json").write_text("{}")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["jobs", str(run)]) == 0
    told = capsys.readouterr()
    assert "squeue is not on the PATH" in told.err
    (row,) = rows(told.out)
    assert row["state"] == "finished" and row["step"] == "100/100" and "left" not in row
    assert main(["jobs"]) == 2


def test_a_run_that_no_job_works_on_says_how_its_last_start_ended(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    (run / "slurm").mkdir()
    lines = [{"kind": "begin", "job": "3"}, {"kind": "end", "job": "3", "how": "failed", "why": "failed (exit code 1); given up"}]
    (run / "slurm" / "chain.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    queue()
    assert main(["jobs", str(run)]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["state"] == "not in the queue" and row["why"] == "failed (exit code 1); given up"
    queue(fails="Unable to contact slurm controller")
    assert main(["jobs", str(run)]) == 0
    assert "Unable to contact" in capsys.readouterr().err
    assert main(["jobs"]) == 1


def test_only_the_newest_of_jobs_that_have_ended_is_shown(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    comment = f"codemix train {run}"
    queue({"array": "9", "state": "CANCELLED", "comment": comment}, {"array": "10", "state": "TIMEOUT", "comment": comment})
    assert main(["jobs"]) == 0
    assert "none of your jobs" in capsys.readouterr().out
    assert main(["jobs", str(run)]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["job"] == "10" and row["state"] == "timeout"


def test_a_folder_of_nothing_is_refused(tmp_path: Path, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue()
    assert main(["jobs", str(tmp_path)]) == 2
    assert "neither a run nor" in capsys.readouterr().err


def test_lines_that_a_restart_withdrew_do_not_count(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    later = time.time() + 5000
    with open(run / "log.jsonl", "a") as handle:
        handle.write(json.dumps({"kind": "start", "first_step": 20, "num_steps": 90, "time": later}) + "\n")
    state = run_state(run)
    assert (state.step, state.num_steps, state.last_line) == (20, 90, later)
    assert state.seconds_left == pytest.approx(70 * 0.5)  # by the steps' own time: none has been made since
    with open(run / "log.jsonl", "a") as handle:
        for step in (21, 22, 23):
            handle.write(json.dumps({"kind": "step", "step": step, "loss": 1.0, "time": later + 3 * (step - 20)}) + "\n")
        handle.write('{"kind": "step", "step": 24, "lo')
    state = run_state(run)
    assert state.step == 23 and state.seconds_left == pytest.approx(67 * 3)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=4000)
    assert (run / "log.jsonl").stat().st_size > 1 << 18
    lines = tail(run / "log.jsonl")
    assert lines[-1]["step"] == 4000 and lines[0]["kind"] == "step"
    (run / "plan.json").write_text(json.dumps({"num_steps": 5000}))
    assert run_state(run).num_steps == 5000


def test_an_empty_folder_is_a_run_that_says_nothing(tmp_path: Path) -> None:
    state = run_state(tmp_path)
    assert (state.step, state.num_steps, state.loss, state.checkpoint, state.attempt, state.finished) == (
        None,
        None,
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (3605, "1 h"), (90061, "1 d 1 h"), (-3, "0 s")]
)
def test_durations_are_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
