"""Whole runs under ZeRO on two ranks, with guards and objectives: a NaN on one rank is left out, or gone back from; killed and continued.

The runs are those of fault_worker.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
from megatron_codemix.train import read_log

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env"),
]
HERE = Path(__file__).parent
STEPS, SEQUENCE, BATCH = 8, 32, 4
OBJECTIVE = {"fim": {"rate": 0.5}, "prefix": {"rate": 0.5}, "corruption": {"rate": 0.1}}
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "CODEMIX_LAUNCHER")} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_split: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    texts = [f"def f{number}(x):\n    return x + {draw.randint(0, 9)}\n" * draw.randint(1, 3) for number in range(300)]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
    write_split(folder / "code" / "train", Tokenizer.load(folder), texts)
    return folder


def write_run(folder: Path, corpus: Path, zero_stage: int, guards: dict[str, Any]) -> Path:
    stage = {
        "name": "only",
        "tokens": STEPS * BATCH * SEQUENCE,
        "mixture": {"code": 1},
        "batch_size": BATCH,
        "sequence_length": SEQUENCE,
        "learning_rate": {"shape": "constant", "peak": 0.01},
        "objective": OBJECTIVE,
    }
    config = {
        "name": "zero",
        "output": str(folder / "run"),
        "tokenizer": str(corpus),
        "sources": {"code": {"path": str(corpus / "code"), "validation_split": None}},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64},
        "stages": [stage],
        "engine": "deepspeed",
        "deepspeed": {"zero_stage": zero_stage} | ({"persistent_elements": 0} if zero_stage == 3 else {}),
        "precision": "fp32",
        "checkpoint": {"every_steps": 2, "keep": 3, "asynchronous": False},
        "logging": {"peak_tflops": 0.1, "tensorboard": False},
        "timeouts": {"join_seconds": 240, "hang_seconds": 240},
        "guards": guards,
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def train(run_file: Path, *faults: dict, nan: str = "") -> subprocess.CompletedProcess[str]:
    """One start. nan: 'rank:step' whose loss is no number, whenever that step is made."""
    run = str(run_file.parent / "run")
    environment = {**ENVIRONMENT, "CODEMIX_FAULTS": json.dumps(faults), "CODEMIX_FAULT_RUN": run, "CODEMIX_FAULT_LOSS": nan}
    command = [sys.executable, str(HERE / "fault_worker.py"), "train", str(run_file), "--nproc", "2"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def outcome(run_file: Path) -> dict:
    run = run_file.parent / "run"
    checkpoint = Checkpoint.open(run)
    log = [(line["step"], line["loss"], line["grad_norm"]) for line in read_log(run) if line["kind"] == "step"]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.weights.iterdir()}
    skipped = [(entry["first"], entry["end"]) for entry in checkpoint.lineage()["skipped"]]
    return {"step": checkpoint.step, "log": log, "weights": weights, "ledger": checkpoint.ledger(), "skipped": skipped}


@pytest.mark.parametrize(("zero_stage", "action"), [(2, "skip"), (3, "rewind")])
def test_a_nan_on_one_rank_and_a_death_behind_it(corpus, tmp_path, zero_stage, action):
    """Step 5 has a NaN on rank 1; a second run of the same is killed behind step 6 and continued."""
    guards = {"non_finite": action, "skip_before": 1, "skip_after": 1}
    whole, killed = (write_run(tmp_path / name, corpus, zero_stage, guards) for name in ("whole", "killed"))
    result = train(whole, nan="1:4")
    assert result.returncode == 0, result.stderr
    # a rewind comes back to the checkpoint of step 2, and makes step 3 again
    calls = {"skip": 5, "rewind": 6}[action]
    dead = train(killed, {"point": "step logged, main", "rank": 0, "call": calls, "what": "kill"}, nan="1:4")
    assert dead.returncode != 0
    assert "fault:" in dead.stderr, dead.stderr
    result = train(killed, nan="1:4")
    assert result.returncode == 0, result.stderr
    ends = [outcome(run_file) for run_file in (whole, killed)]
    assert ends[0] == ends[1]
    assert ends[0]["skipped"] == {"skip": [(4, 5)], "rewind": [(3, 5)]}[action]
    assert ends[0]["ledger"]["sources"]["code"]["excluded"] > 0
    for run_file in (whole, killed):
        assert main(["audit", str(run_file.parent / "run")]) == 0
