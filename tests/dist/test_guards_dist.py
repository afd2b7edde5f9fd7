"""A NaN on one of two ranks, under every kind of layout: all ranks see it, none changes a weight. And SIGKILL in a rewind.

One launch (guard_worker.py) for the engines; the runs are those of fault_worker.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.files import write_json
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
from megatron_codemix.train import read_log

pytestmark = pytest.mark.timeout(3600)
HERE = Path(__file__).parent
STEPS, SEQUENCE, BATCH = 10, 32, 4
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "CODEMIX_LAUNCHER")} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """Of each rank: layout, faulty rank and place of the fault → what it saw."""
    folder = tmp_path_factory.mktemp("guards")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(HERE / "guard_worker.py")]
    result = subprocess.run([*start, str(folder)], capture_output=True, text=True, env=ENVIRONMENT, timeout=1500)
    assert result.returncode == 0, result.stderr[-6000:]
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
def corpus(tmp_path_factory: pytest.TempPathFactory, write_split: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    texts = [f"def f{number}(x):\n    return x + {draw.randint(0, 9)}\n" * draw.randint(1, 3) for number in range(300)]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
    write_split(folder / "code" / "train", Tokenizer.load(folder), texts)
    return folder


def write_run(folder: Path, corpus: Path) -> Path:
    stage = {
        "name": "only",
        "tokens": STEPS * BATCH * SEQUENCE,
        "mixture": {"code": 1},
        "batch_size": BATCH,
        "sequence_length": SEQUENCE,
        "learning_rate": {"shape": "constant", "peak": 0.01},
    }
    config = {
        "name": "guarded",
        "output": str(folder / "run"),
        "tokenizer": str(corpus),
        "sources": {"code": {"path": str(corpus / "code"), "validation_split": None}},
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "ffn_hidden_size": 64,
            "hidden_dropout": 0.1,
        },
        "stages": [stage],
        "parallel": {"distributed_optimizer": True},
        "precision": "fp32",
        "checkpoint": {"every_steps": 2, "keep": 3, "asynchronous": False},
        "logging": {"peak_tflops": 0.1, "tensorboard": False},
        "timeouts": {"join_seconds": 240, "hang_seconds": 240},
        "guards": {"non_finite": "rewind", "skip_before": 3, "skip_after": 2, "ranks_every_steps": 3},
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def train(run_file: Path, *faults: dict, nan: str = "") -> subprocess.CompletedProcess[str]:
    """One start. nan: 'rank:step' whose gradient is NaN, whenever that step is made."""
    run = str(run_file.parent / "run")
    environment = {**ENVIRONMENT, "CODEMIX_FAULTS": json.dumps(faults), "CODEMIX_FAULT_RUN": run, "CODEMIX_FAULT_NAN": nan}
    command = [sys.executable, str(HERE / "fault_worker.py"), "train", str(run_file), "--nproc", "2"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def outcome(run_file: Path) -> dict:
    run = run_file.parent / "run"
    checkpoint = Checkpoint.open(run)
    log = [(line["step"], line["loss"], line["grad_norm"]) for line in read_log(run) if line["kind"] == "step"]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.weights.iterdir()}
    skipped = [(entry["first"], entry["end"]) for entry in checkpoint.lineage()["skipped"]]
    return {"step": checkpoint.step, "log": log, "weights": weights, "ledger": checkpoint.ledger(), "skipped": skipped}


@pytest.fixture(scope="module")
def told(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """How a run ends that has met no fault, and was told to leave out steps 3 to 7 (0-based, 8 excluded)."""
    run_file = write_run(tmp_path_factory.mktemp("told") / "told", corpus)
    stopped = train(run_file, {"point": "step ended", "rank": 1, "call": 3, "what": "kill"})
    assert stopped.returncode != 0
    skip = {"first": 3, "end": 8, "fault": 6, "why": "told"}
    write_json(run_file.parent / "run" / "skips.json", {"format_version": 1, "skips": [skip]})
    result = train(run_file)
    assert result.returncode == 0, result.stderr
    return outcome(run_file)


@pytest.mark.parametrize(
    ("point", "rank"),
    [("rewind planned, main", 0), ("given up, main", 0), ("load", 1)],
)
def test_killed_in_a_rewind_the_same_command_carries_it_out(corpus, tmp_path, told, point, rank):
    """Step 7 has a NaN on rank 1, and is to be left out with those around it: back to the checkpoint of step 2."""
    run_file = write_run(tmp_path / "killed", corpus)
    killed = train(run_file, {"point": point, "rank": rank, "call": 1, "what": "kill"}, nan="1:6")
    assert killed.returncode != 0
    assert "fault:" in killed.stderr, killed.stderr
    result = train(run_file, nan="1:6")
    assert result.returncode == 0, result.stderr
    assert told["skipped"] == [(3, 8)]
    assert outcome(run_file) == told
    assert main(["audit", str(run_file.parent / "run")]) == 0


def test_undisturbed_the_rewind_ends_alike_and_ranks_are_reported(corpus, tmp_path, told):
    run_file = write_run(tmp_path / "undisturbed", corpus)
    result = train(run_file, nan="0:6")
    assert result.returncode == 0, result.stderr
    assert outcome(run_file) == told
    assert "went back to the checkpoint of step 2; steps 4 to 8 are left out (step 7: loss" in result.stderr
    reports = [line for line in read_log(run_file.parent / "run") if line["kind"] == "ranks"]
    assert [line["step"] for line in reports] == [3, 9]
    assert all(line["slowest"] in (0, 1) and line["factor"] >= 1 for line in reports)
