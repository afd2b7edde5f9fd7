"""Whether a later start of this job has begun: exit code 0, and a line that says so; else 1. What a node asks once its training has failed.

    CODEMIX_STOP_FILE=RUN/slurm/stop.12.0 CODEMIX_CHAIN=12 SLURM_JOB_ID=12 python -m megatron_codemix.slurm.stale

Slurm starts a job again where it takes a node for lost. If only the node's network was lost, the earlier start is still there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_codemix.slurm.chain import read_chain

_STOP_FILE = "CODEMIX_STOP_FILE"


def superseded(environment: Mapping[str, str]) -> bool:
    """Whether the chain has a begin behind that of this start. Raises KeyError outside a task of train.sbatch."""
    run, job = Path(environment[_STOP_FILE]).parents[1], environment["SLURM_JOB_ID"]
    starts = [line for line in read_chain(run, environment["CODEMIX_CHAIN"]) if line.get("kind") == "begin"]
    numbers = [(line.get("job"), line.get("restart")) for line in starts]
    this = (job, int(environment.get("SLURM_RESTART_COUNT") or 0))
    return this in numbers and numbers[-1] != this


def main() -> int:
    """Exit code 0: it has."""
    if not superseded(os.environ):
        return 1
    print("another start of this job has taken over; this one waits here until Slurm ends it, so as not to end the other one's step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
