"""What both processes of the launch in test_stages_dist.py run: stages with a ramp, stopped inside it and at boundaries; a branch.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 stages_worker.py FOLDER

FOLDER holds run.yaml, changed.yaml and branch.yaml. The request to stop reaches rank 1 alone.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch

from megatron_codemix.cli import main
from megatron_codemix.train.recorder import Recorder

DATA = ["parallel.distributed_optimizer=true"]
CHAIN = [
    (DATA, 2),
    (["parallel.tensor=2", "parallel.sequence=true"], 4),
    (["parallel.pipeline=2"], 7),
    (["parallel.context=2"], 10),
    (DATA, 0),
]
"""Overrides of each part, and behind which update it is stopped: inside the ramp, on its next size, at both boundaries; 0: the end."""
_logged = Recorder.step


def train(folder: Path, name: str, arguments: list[str], stop_after: int = 0, *, config: str = "run.yaml") -> None:
    """Train FOLDER/NAME to its end, or until rank 1 alone is asked to stop behind an update."""

    def step(self: Recorder, done: int, *rest) -> None:
        _logged(self, done, *rest)
        if done == stop_after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    Recorder.step = step
    code = main(["train", str(folder / config), f"output={folder / name}", *arguments])
    assert code == (75 if stop_after else 0), f"{name} {arguments}: exit code {code}"


def work(folder: Path) -> None:
    """All runs, one after the other."""
    train(folder, "whole", DATA)
    for overrides, stop_after in CHAIN:
        train(folder, "chain", overrides, stop_after)
    train(folder, "parted", DATA, stop_after=4)
    train(folder, "parted", DATA)
    train(folder, "changed", DATA, stop_after=4)
    train(folder, "changed", ["parallel.tensor=2", "--accept-changes"], config="changed.yaml")
    train(folder, "branch", ["parallel.tensor=2"], config="branch.yaml")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
