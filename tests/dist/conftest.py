"""What tests of several processes have in common: launches of a worker, a corpus, runs that meet faults."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
from megatron_codemix.train import read_log

_HERE = Path(__file__).parent
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "CODEMIX_LAUNCHER")


def _environment(**more: str) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if key not in _OF_A_LAUNCHER}
    return {**given, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


def _launch(worker: str | Path, *arguments: str | Path, ranks: int = 2, seconds: float = 900) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, str(_HERE / worker), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=_environment())
    said = [line for line in ran.stderr.splitlines() if "codemix train:" in line or "warning:" in line]
    assert ran.returncode == 0, "\n".join([*said, (ran.stdout + ran.stderr)[-5000:]])
    return ran.stderr + ran.stdout


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """`launch(WORKER beside this file, *ARGUMENTS, ranks=2, seconds=900)` under torchrun: what it said (stderr, then stdout)."""
    return _launch


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], Any]], Path]:
    """`shared(NAME, make)`: a folder that make(FOLDER) has filled, by whichever worker of pytest-xdist comes first."""
    own = tmp_path_factory.getbasetemp()
    base = own if worker_id == "master" else own.parent

    def filled(name: str, make: Callable[[Path], Any]) -> Path:
        folder = base / name
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (base / f"{name}.made").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                (base / f"{name}.made").touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, write_split: Callable[..., None]) -> Path:
    """FOLDER/tokenizer.model; FOLDER/code/train and valid; the same documents as two sources, FOLDER/halves/code and more."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    texts = [f"def f{number}(x):\n    return x + {draw.randint(0, 9)}\n" * draw.randint(1, 3) for number in range(300)]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
    tokenizer = Tokenizer.load(folder)
    for split, documents in (("code/train", texts[:270]), ("code/valid", texts[270:])):
        write_split(folder / split, tokenizer, documents)
    for split, documents in (("halves/code/train", texts[:150]), ("halves/more/train", texts[150:])):
        write_split(folder / split, tokenizer, documents)
    return folder


_MODEL = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}


def _write_run(
    folder: Path, corpus: Path, *, steps: int, model: dict[str, Any] | None = None, stage: dict[str, Any] | None = None, **sections: Any
) -> Path:
    only = {"name": "only", "tokens": steps * 4 * 32, "mixture": {"code": 1}, "batch_size": 4, "sequence_length": 32}
    config = {
        "name": "faulty",
        "output": str(folder / "run"),
        "tokenizer": str(corpus),
        "sources": {"code": {"path": str(corpus / "code")}},
        "model": _MODEL | (model or {}),
        "stages": [{**only, "learning_rate": {"shape": "constant", "peak": 0.01}, **(stage or {})}],
        "precision": "fp32",
        "logging": {"peak_tflops": 0.1, "tensorboard": False},
        "timeouts": {"join_seconds": 240, "hang_seconds": 240},
        **sections,
    }
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def _train(run_file: Path, *faults: dict, ranks: int = 2, nan_gradient: str = "", nan_loss: str = "") -> subprocess.CompletedProcess[str]:
    environment = _environment(
        CODEMIX_FAULTS=json.dumps(faults),
        CODEMIX_FAULT_RUN=str(run_file.parent / "run"),
        CODEMIX_FAULT_NAN=nan_gradient,
        CODEMIX_FAULT_LOSS=nan_loss,
    )
    command = [sys.executable, str(_HERE / "fault_worker.py"), "train", str(run_file), "--nproc", str(ranks)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def _outcome(run_file: Path) -> dict[str, Any]:
    run = run_file.parent / "run"
    checkpoint = Checkpoint.open(run)
    log = [(line["step"], line["loss"], line["grad_norm"]) for line in read_log(run) if line["kind"] == "step"]
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.weights.iterdir()}
    skipped = [(entry["first"], entry["end"]) for entry in checkpoint.lineage()["skipped"]]
    return {"step": checkpoint.step, "log": log, "weights": weights, "ledger": checkpoint.ledger(), "skipped": skipped}


@pytest.fixture(scope="session")
def faulty() -> SimpleNamespace:
    """Runs of fault_worker.py.

    write_run(FOLDER, CORPUS, steps=, model=, stage=, SECTION=…): FOLDER/run.yaml, which trains into FOLDER/run.
    train(RUN_FILE, *FAULTS, ranks=2): one start of the same command. nan_gradient, nan_loss: 'rank:step' where it is no number,
    whenever that step (0-based) is made. outcome(RUN_FILE): all that two runs of one config must share, in full digits.
    """
    return SimpleNamespace(write_run=_write_run, train=_train, outcome=_outcome)
