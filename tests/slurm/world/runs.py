"""Tiny runs for the cluster: their files, what is done to them while they train, and all that two ends of one must share."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
from megatron_codemix.train import read_log

STEPS, SEQUENCE, BATCH = 12, 32, 4
EVERY = 2
"""Steps between two checkpoints."""
_GATE = Path(__file__).parent / "gate"
_DIGITS = ("kind", "step", "loss", "grad_norm", "learning_rate", "tokens", "source", "bits_per_byte")


def write_corpus(folder: Path, write_split: Callable[..., None]) -> None:
    """A tokenizer and one source with a held-out split."""
    folder.mkdir(parents=True)
    draw = random.Random(1)
    texts = [f"def f{number}(x):\n    return x + {draw.randint(0, 9)}\n" * draw.randint(1, 3) for number in range(300)]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
    tokenizer = Tokenizer.load(folder)
    for split, documents in (("train", texts[:270]), ("valid", texts[270:])):
        write_split(folder / "code" / split, tokenizer, documents)


class TrainingRun:
    """A run of STEPS steps with dropout, in a folder of its own that all nodes share."""

    def __init__(self, cluster: Any, folder: Path, corpus: Path, output: Path | None, config: dict[str, Any], site: dict[str, Any]) -> None:
        self.cluster, self.folder = cluster, folder
        self.output = cluster.seen(output or folder / "run")
        self.file, self.site, self.gate = folder / "run.yaml", folder / "site.yaml", folder / "gate"
        self.logs = folder / "logs"
        self.gate.mkdir(parents=True)
        self.file.write_text(yaml.safe_dump({**_run(output or folder / "run", corpus), **config}))
        variables = {"PYTHONPATH": str(_GATE), "CODEMIX_GATE": str(self.gate), "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
        common = {"partition": "low", "python": sys.executable, "network_interface": "eth0", "logs": str(self.logs)}
        common |= {"processes_per_node": 2, "preflight": {"enabled": False}}
        self.site.write_text(yaml.safe_dump({**common, "environment": variables, **site}))

    def submit(self, *options: str) -> str:
        """`codemix submit`; returns the job's number."""
        command = [sys.executable, "-m", "megatron_codemix", "submit", self.file, "--site", self.site, *options]
        said = self.cluster.run(*command).stdout
        found = re.search(r"\bjob (\d+)", said)
        assert found, said
        return found[1]

    def train_here(self, nproc: int) -> None:
        """The same run on the login node, by itself, undisturbed."""
        command = [sys.executable, "-m", "megatron_codemix", "train", self.file, "--nproc", str(nproc)]
        self.cluster.run(*command, seconds=600, CUDA_VISIBLE_DEVICES="-1", OMP_NUM_THREADS="1")

    def hold(self, start: int, step: int, order: str = "step") -> None:
        """Trainers of this start make `step` steps and no more, until `release` (gate/sitecustomize.py)."""
        temporary = self.gate / ".new"
        temporary.write_text(str(step))
        os.replace(temporary, self.gate / f"{order}-{start}")

    def wait_held(self, start: int, ranks: int, order: str = "step", seconds: float = 600) -> None:
        """Until so many ranks of this start have come to where they are held."""
        pattern = f"held-{order}-{start}-rank-*"
        self.cluster.wait(f"{ranks} ranks of start {start} to be held", lambda: len(list(self.gate.glob(pattern))) >= ranks, seconds)

    def kill(self, start: int, rank: int, node: str) -> None:
        """SIGKILL to a rank that is held there."""
        self.cluster.on(node, "kill", "-9", (self.gate / f"held-step-{start}-rank-{rank}").read_text())

    def release(self, start: int, order: str = "step") -> None:
        """Let them go on."""
        (self.gate / f"{order}-{start}").unlink()

    def checkpoints(self) -> list[int]:
        """Steps of the published ones."""
        return sorted(int(path.name.removeprefix("step-")) for path in (self.output / "checkpoints").glob("step-*"))

    def log(self) -> list[dict[str, Any]]:
        """Lines of log.jsonl as training sees them: of a step made twice, the last."""
        return read_log(self.output)

    def raw_log(self) -> list[dict[str, Any]]:
        """Every line of log.jsonl."""
        return [json.loads(line) for line in (self.output / "log.jsonl").read_text().splitlines()]

    def chain(self, kind: str) -> list[dict[str, Any]]:
        """Lines of RUN/slurm/chain.jsonl: of starts that begin, or that end."""
        lines = map(json.loads, (self.output / "slurm" / "chain.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def said(self) -> str:
        """What the batch shells and trainers have printed."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.logs.glob("*.log")))

    def outcome(self) -> dict[str, Any]:
        """All that two ends of one run must share, in full digits: losses, norms, ledger, weights, moments."""
        lines = [{key: line[key] for key in _DIGITS if key in line} for line in self.log() if line["kind"] in ("step", "validation")]
        final = self.output / "checkpoints" / f"step-{STEPS:08d}"
        files = sorted([*(final / "weights").iterdir(), final / "ledger.json"])
        return {"log": lines, "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}

    def assert_ended_like(self, reference: dict[str, Any], stale_attempt: int | None = None) -> None:
        """Finished, bit for bit as the other run, and nothing half-written lies about.

        stale_attempt: one that went on when another had begun; it may have left a hidden folder, for the next start to sweep.
        """
        found = self.outcome()
        assert found["log"] == reference["log"]
        assert found["files"] == reference["files"]
        names = [path.name for path in (self.output / "checkpoints").iterdir()]
        assert [name for name in names if not name.startswith("step-") and f".attempt-{stale_attempt}." not in name] == []
        finished = json.loads((self.output / "finished.json").read_text())
        assert (finished["name"], finished["step"]) == ("faulty", STEPS)


def _run(output: Path, corpus: Path) -> dict[str, Any]:
    stage = {
        "name": "only",
        "tokens": STEPS * BATCH * SEQUENCE,
        "mixture": {"code": 1},
        "batch_size": BATCH,
        "sequence_length": SEQUENCE,
        "learning_rate": {"shape": "linear", "peak": 0.01, "warmup_tokens": 2 * BATCH * SEQUENCE},
    }
    model = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64}
    return {
        "name": "faulty",
        "output": str(output),
        "tokenizer": str(corpus),
        "sources": {"code": {"path": str(corpus / "code")}},
        "model": {**model, "hidden_dropout": 0.1, "attention_dropout": 0.1},
        "stages": [stage],
        "precision": "fp32",
        "validation": {"every_steps": 6, "max_windows": 4},
        "checkpoint": {"every_steps": EVERY, "keep": 2},
        "logging": {"every_steps": 1, "peak_tflops": 0.1, "tensorboard": False},
        "timeouts": {"join_seconds": 600, "hang_seconds": 900},
    }
