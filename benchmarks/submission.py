"""How long `codemix submit RUN.yaml` and the rule of the requeue chain take, with a stand-in for sbatch that answers at once.

    python benchmarks/submission.py [--repeats 7]

Prints medians in seconds, alternating with an interpreter that does nothing. The bars: a submission < 1 s, the rule < 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = """\
name: bench
output: out
tokenizer: tokenizer
sources: {code: {path: code}}
model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, ffn_hidden_size: 128}
stages:
  - {name: main, tokens: 512, mixture: {code: 1}, batch_size: 8, sequence_length: 64, learning_rate: {shape: constant, peak: 1e-3}}
"""


def prepare(folder: Path) -> None:
    """A run file with inputs that are there, and programs that answer as Slurm's."""
    (folder / "run.yaml").write_text(RUN)
    for name in ("tokenizer", "code/train", "code/valid", "bin"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "valid"):
        (folder / "code" / split / "manifest.json").write_text("{}")
    for name, body in (("sbatch", "echo 41"), ("squeue", "true")):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / "bin" / name).chmod(0o755)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    numbers = {"job": 41, "restart": 0, "chain": 41, "code": 1, "stopped": 0, "cancelled": 0, "max-restarts": 3}
    verdict = ["--run", "out", *(word for name, number in numbers.items() for word in (f"--{name}", str(number)))]
    commands = {
        "nothing": ["-c", ""],
        "submit": ["-P", "-m", "megatron_codemix", "submit", "run.yaml", "--nodes", "4", "--time", "24:00:00"],
        "chain": ["-P", "-m", "megatron_codemix.slurm.chain", *verdict],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        for _ in range(repeats + 1):
            for what, words in commands.items():
                shutil.rmtree(folder / "out", ignore_errors=True)
                begun = time.perf_counter()
                done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False)
                seconds[what].append(time.perf_counter() - begun)
                assert done.returncode == (75 if what == "chain" else 0), done.stderr.decode()
    print(json.dumps({what: round(statistics.median(taken[1:]), 3) for what, taken in seconds.items()}))


if __name__ == "__main__":
    main()
