"""A NaN on one of two ranks, under every kind of layout: all ranks see it, none changes a weight. And SIGKILL in a rewind.

One launch (guard_worker.py) for the engines; the runs are those of fault_worker.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_codemix.cli import main
from megatron_codemix.files import write_json
from megatron_codemix.train import read_log

pytestmark = pytest.mark.timeout(3600)
STEPS = 10


@pytest.fixture(scope="module")
def trials(shared: Callable[..., Path], launch: Callable[..., str]) -> list[dict[str, dict]]:
    """Of each rank: layout, faulty rank and place of the fault → what it saw."""
    folder = shared("guards", lambda folder: launch("guard_worker.py", folder, seconds=1500))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_every_rank_sees_the_nan_of_one(trials):
    assert len(trials[0]) == 2 * 7 * 2 * 2
    for seen in trials:
        for name, trial in seen.items():
            assert trial["asked"] == [[True, False], [True, True], [True, True]], name
            assert trial["updated"] is False, name


def test_no_rank_changes_a_weight_or_a_moment(trials):
    for seen in trials:
        assert [name for name, trial in seen.items() if not trial["untouched"]] == []
        assert {trial["step"] for trial in seen.values()} == {3}


def test_training_goes_on_as_if_the_step_had_been_passed_over(trials):
    for seen in trials:
        assert [name for name, trial in seen.items() if not (all(trial["goes on"]) and trial["same end"])] == []


def test_to_be_asked_changes_no_bit(trials):
    for seen in trials:
        assert [name for name, trial in seen.items() if not trial["accepting changes nothing"]] == []


def test_each_rank_knows_how_long_it_worked_by_itself(trials):
    assert all(0 < trial["own seconds"] < 60 for seen in trials for trial in seen.values())


@pytest.fixture(scope="module")
def write_run(corpus: Path, faulty: SimpleNamespace) -> Callable[[Path], Path]:
    """Into which folder → its run file."""
    sections = {
        "sources": {"code": {"path": str(corpus / "code"), "validation_split": None}},
        "parallel": {"distributed_optimizer": True},
        "checkpoint": {"every_steps": 2, "keep": 3, "asynchronous": False},
        "guards": {"non_finite": "rewind", "skip_before": 3, "skip_after": 2, "ranks_every_steps": 3},
    }
    return lambda folder: faulty.write_run(folder, corpus, steps=STEPS, model={"hidden_dropout": 0.1}, **sections)


@pytest.fixture(scope="module")
def told(write_run: Callable[[Path], Path], faulty: SimpleNamespace, shared: Callable[..., Path]) -> dict:
    """How a run ends that has met no fault, and was told to leave out steps 3 to 7 (0-based, 8 excluded)."""

    def make(folder: Path) -> None:
        run_file = write_run(folder / "told")
        stopped = faulty.train(run_file, {"point": "step ended", "rank": 1, "call": 3, "what": "kill"})
        assert stopped.returncode != 0
        skip = {"first": 3, "end": 8, "fault": 6, "why": "told"}
        write_json(run_file.parent / "run" / "skips.json", {"format_version": 1, "skips": [skip]})
        result = faulty.train(run_file)
        assert result.returncode == 0, result.stderr

    return faulty.outcome(shared("guarded", make) / "told" / "run.yaml")


@pytest.mark.parametrize(
    ("point", "rank"),
    [("rewind planned, main", 0), ("given up, main", 0), ("load", 1)],
)
def test_killed_in_a_rewind_the_same_command_carries_it_out(write_run, faulty, tmp_path, told, point, rank):
    """Step 7 has a NaN on rank 1, and is to be left out with those around it: back to the checkpoint of step 2."""
    run_file = write_run(tmp_path / "killed")
    killed = faulty.train(run_file, {"point": point, "rank": rank, "call": 1, "what": "kill"}, nan_gradient="1:6")
    assert killed.returncode != 0
    assert "fault:" in killed.stderr, killed.stderr
    result = faulty.train(run_file, nan_gradient="1:6")
    assert result.returncode == 0, result.stderr
    assert told["skipped"] == [(3, 8)]
    assert faulty.outcome(run_file) == told
    assert main(["audit", str(run_file.parent / "run")]) == 0


def test_undisturbed_the_rewind_ends_alike_and_ranks_are_reported(write_run, faulty, tmp_path, told):
    run_file = write_run(tmp_path / "undisturbed")
    result = faulty.train(run_file, nan_gradient="0:6")
    assert result.returncode == 0, result.stderr
    assert faulty.outcome(run_file) == told
    assert "went back to the checkpoint of step 2; steps 4 to 8 are left out (step 7: loss" in result.stderr
    reports = [line for line in read_log(run_file.parent / "run") if line["kind"] == "ranks"]
    assert [line["step"] for line in reports] == [3, 9]
    assert all(line["slowest"] in (0, 1) and line["factor"] >= 1 for line in reports)
