"""Two real processes: joining, grids, groups, leaving; nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_HEADER = """
import json, os, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch, torch.distributed as dist
from megatron.core import parallel_state
from megatron_codemix.config import ParallelConfig
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
out = Path(sys.argv[1])
"""

_GRIDS = (
    _HEADER
    + """
seen = []
for degrees in ({}, {"tensor": 2}, {"pipeline": 2}, {"context": 2}, {"pipeline": 2, "virtual_stages": 2}):
    with Topology.join(ParallelConfig(**degrees), seed=1) as topology:
        total = torch.ones(1, device=topology.device)
        dist.all_reduce(total, group=topology.data_and_context.group)
        axes = {name: [getattr(topology, name).rank, getattr(topology, name).size] for name in ("tensor", "pipeline", "context", "data")}
        seen.append({**axes, "summed": int(total), "first": topology.is_first_stage, "last": topology.is_last_stage,
                     "told": topology.broadcast(f"from {topology.rank}"), "device": topology.device.type,
                     "gathered": topology.gather(topology.rank), "any": topology.any_of(topology.rank == 1, False),
                     "virtual": parallel_state.get_virtual_pipeline_model_parallel_world_size()})
    assert not dist.is_initialized()
def held():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
held_before = held()
for _ in range(5):
    with Topology.join(ParallelConfig(tensor=2)) as topology:
        topology.barrier()
seen.append([held_before, held()])
try:
    Topology.join(ParallelConfig(tensor=4))
except UserError as error:
    seen.append(str(error))
(out / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""
)

_CRASH = (
    _HEADER
    + """
with Topology.join(ParallelConfig()) as topology:
    (out / f"{topology.rank}.pid").write_text(str(os.getpid()))
    if topology.rank == 1:
        raise RuntimeError("one of two fails")
    topology.barrier()
"""
)

_ORPHANS = (
    _HEADER
    + """
with Topology.join(ParallelConfig()) as topology:
    part = out / f"{topology.rank}.part"
    part.write_text(str(os.getpid()))
    part.rename(out / f"{topology.rank}.pid")
    time.sleep(120)
"""
)


_RESTARTED = (
    _HEADER
    + """
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
with Topology.join(ParallelConfig()) as topology:
    if attempt == "0" and topology.rank == 1:
        os.kill(os.getpid(), 9)
    topology.barrier()
(out / f"{attempt}-{os.environ['RANK']}").touch()
"""
)


def _start(code: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    script = folder / "worker.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, str(script), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until_gone(pids: list[int], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if _alive(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def test_two_processes_join_every_grid_one_after_the_other(tmp_path: Path) -> None:
    process = _start(_GRIDS, tmp_path)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank, (data, tensor, pipeline, context, interleaved, held, refused) in enumerate(ranks):
        alone = [0, 1]
        assert data["data"] == [rank, 2]
        assert [data[name] for name in ("tensor", "pipeline", "context")] == [alone] * 3
        assert tensor["tensor"] == [rank, 2]
        assert pipeline["pipeline"] == [rank, 2]
        assert context["context"] == [rank, 2]
        assert [grid["summed"] for grid in (data, tensor, pipeline, context)] == [2, 1, 1, 2]
        assert (pipeline["first"], pipeline["last"]) == (rank == 0, rank == 1)
        assert interleaved["pipeline"] == [rank, 2]
        assert [grid["virtual"] for grid in (pipeline, interleaved)] == [None, 2]
        assert all(grid["gathered"] == [0, 1] and grid["any"] == [True, False] for grid in (data, tensor, interleaved))
        assert held[0] == held[1], "descriptors or threads are left behind by joining again"
        assert {grid["told"] for grid in (data, tensor, pipeline, context)} == {"from 0"}
        assert "does not divide the 2 process(es)" in refused


def test_a_crash_in_one_process_ends_the_other(tmp_path: Path) -> None:
    process = _start(_CRASH, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "one of two fails" in output
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert _wait_until_gone(pids, 10) == []


def test_torchrun_can_start_the_processes_again(tmp_path: Path) -> None:
    """Its store outlives the attempt: addresses of the dead must not be found there."""
    process = _start(_RESTARTED, tmp_path, "--max-restarts", "1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert {path.name for path in tmp_path.glob("?-?")} == {"1-0", "1-1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_killing_the_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    process = _start(_ORPHANS, tmp_path)
    try:
        end = time.monotonic() + 90
        while len(list(tmp_path.glob("*.pid"))) < 2:
            assert process.poll() is None, "the workers ended early"
            assert time.monotonic() < end, "the workers did not start"
            time.sleep(0.1)
        pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        process.send_signal(signal.SIGKILL)
        assert _wait_until_gone(pids, 15) == []
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)
