"""What both processes of the launch in test_resume_dist.py run: `codemix train`, stopped and continued under several layouts.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 resume_worker.py FOLDER

FOLDER holds run.yaml; each run is trained into a folder beside it. The request to stop reaches rank 1 alone.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from pathlib import Path

import torch

from megatron_codemix.cli import main
from megatron_codemix.pieces import reader
from megatron_codemix.train.recorder import Recorder

DATA = ["parallel.distributed_optimizer=true"]
DROPOUT = ["model.hidden_dropout=0.2", "model.attention_dropout=0.1"]
CHAIN = [
    (DATA, 3),
    (["parallel.tensor=2", "parallel.sequence=true"], 5),
    (["parallel.pipeline=2"], 8),
    (["parallel.context=2"], 10),
    (DATA, 0),
]
"""Overrides of each part, and behind which update it is stopped; 0: trained to the end."""
_logged = Recorder.step


def train(folder: Path, name: str, overrides: list[str], stop_after: int = 0, *, config: str = "run.yaml", expected: int = 0) -> None:
    """Train FOLDER/NAME to its end, or until rank 1 alone is asked to stop behind an update. expected: exit code of one to its end."""

    def step(self: Recorder, done: int, *arguments) -> None:
        _logged(self, done, *arguments)
        if done == stop_after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    Recorder.step = step
    code = main(["train", str(folder / config), f"output={folder / name}", *overrides])
    assert code == (75 if stop_after else expected), f"{name} {overrides}: exit code {code}"


def refuse_reading(*arguments) -> None:
    """What rank 1 alone meets."""
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "weights of rank 1")


def work(folder: Path) -> None:
    """All runs, one after the other."""
    train(folder, "whole", DATA)
    for overrides, stop_after in CHAIN:
        train(folder, "chain", overrides, stop_after)
    train(folder, "dropout-whole", DATA + DROPOUT)
    train(folder, "dropout-parted", DATA + DROPOUT, stop_after=5)
    train(folder, "dropout-parted", DATA + DROPOUT)
    train(folder, "whole", DATA)  # finished already
    train(folder, "reordered", DATA, stop_after=5)
    read = reader.read_elements
    if os.environ["RANK"] == "1":
        reader.read_elements = refuse_reading
    train(folder, "reordered", DATA, expected=1)
    reader.read_elements = read
    train(folder, "reordered", DATA, config="reordered.yaml")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
