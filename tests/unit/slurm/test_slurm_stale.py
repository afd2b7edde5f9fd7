"""A node asks whether its start of a job was taken for lost: launch_scripts/node_entry.sh waits for Slurm then."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from megatron_codemix.slurm.chain import append
from megatron_codemix.slurm.stale import superseded

SCRIPT = Path(__file__).parents[3] / "launch_scripts" / "node_entry.sh"


def begin(run: Path, restart: int, job: str = "7") -> None:
    (run / "slurm").mkdir(exist_ok=True)
    append(run, {"kind": "begin", "chain": "7", "job": job, "restart": restart, "nodes": "n1", "step": 0})


def told(run: Path, restart: int) -> dict[str, str]:
    """What a task of train.sbatch finds; SLURM_RESTART_COUNT is not set in the first start."""
    common = {"CODEMIX_STOP_FILE": f"{run}/slurm/stop.7.{restart}", "CODEMIX_CHAIN": "7", "SLURM_JOB_ID": "7"}
    return {**common, "SLURM_RESTART_COUNT": str(restart)} if restart else common


def test_only_a_start_behind_which_another_has_begun_is_superseded(tmp_path: Path) -> None:
    begin(tmp_path, 0)
    assert not superseded(told(tmp_path, 0))
    append(tmp_path, {"kind": "end", "chain": "7", "job": "7", "restart": 0, "how": "failed"})
    assert not superseded(told(tmp_path, 0))
    begin(tmp_path, 1)
    assert superseded(told(tmp_path, 0))
    assert not superseded(told(tmp_path, 1))
    begin(tmp_path, 0, job="8")  # the chain goes on in another job
    assert superseded(told(tmp_path, 1))
    assert not superseded(told(tmp_path, 2))  # a disk that did not take its begin: it ends as ever


@pytest.mark.parametrize("taken_over", (False, True))
def test_a_node_that_failed_ends_unless_another_start_has_taken_over(tmp_path: Path, taken_over: bool) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[ "$3" = torch.distributed.run ] && exit 3\necho asked\nexit $NOT_TAKEN_OVER\n')
    python.chmod(0o755)
    node = {"CODEMIX_PYTHON": str(python), "CODEMIX_MASTER": "n1", "CODEMIX_PORT": "12345", "CODEMIX_NODES": "1", "CODEMIX_PROCESSES": "1"}
    more = {"CODEMIX_RENDEZVOUS": "7.0", "SLURM_PROCID": "0", "NOT_TAKEN_OVER": str(int(not taken_over)), "PATH": os.environ["PATH"]}
    ran = subprocess.Popen(["bash", SCRIPT, "run.yaml"], env={**node, **more, **told(tmp_path, 0)}, stdout=subprocess.PIPE, text=True)
    assert ran.stdout is not None and ran.stdout.readline() == "asked\n"
    if not taken_over:
        assert ran.wait(60) == 3
        return
    end = time.monotonic() + 60
    while Path(f"/proc/{ran.pid}/comm").read_text() != "sleep\n" and time.monotonic() < end:
        time.sleep(0.05)
    assert ran.poll() is None
    ran.terminate()  # as Slurm does
    assert ran.wait(60) == -15
