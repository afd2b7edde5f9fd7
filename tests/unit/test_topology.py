"""The process grid in one process: degrees checked at birth, joining and leaving, seeds."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_codemix.config import ParallelConfig, RunConfig, TimeoutConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
from megatron_codemix.parallel.rendezvous import Place
from megatron_codemix.train.watchdog import Watchdog

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_the_identity_on_every_axis() -> None:
    with Topology.join(ParallelConfig()) as topology:
        axes = (topology.tensor, topology.pipeline, topology.context, topology.data, topology.data_and_context)
        assert [(axis.rank, axis.size, axis.group.size()) for axis in axes] == [(0, 1, 1)] * 5
        assert (topology.rank, topology.world_size, topology.data_rank, topology.data_size) == (0, 1, 0, 1)
        assert topology.is_main
        assert topology.is_first_stage
        assert topology.is_last_stage
        assert topology.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        topology.barrier()
        assert topology.broadcast({"step": 3}) == {"step": 3}
        assert "data 0/1" in repr(topology)
    assert not dist.is_initialized()


def test_leaving_after_an_error_and_joining_again() -> None:
    with pytest.raises(RuntimeError, match="inside"), Topology.join(ParallelConfig()):
        raise RuntimeError("inside")
    assert not dist.is_initialized()
    again = Topology.join(ParallelConfig())
    again.leave()
    again.leave()
    assert not dist.is_initialized()


def test_joining_twice_is_our_own_mistake() -> None:
    with Topology.join(ParallelConfig()), pytest.raises(AssertionError, match="leave it first"):
        Topology.join(ParallelConfig())
    assert not dist.is_initialized()


def test_topologies_that_were_left_do_not_keep_their_threads(request: pytest.FixtureRequest) -> None:
    stage = {"name": "only", "tokens": 64, "mixture": {"a": 1}, "batch_size": 1, "sequence_length": 8}
    raw = {
        "name": "test",
        "output": "unused",
        "tokenizer": "unused",
        "sources": {"a": {"path": "unused"}},
        "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 1, "ffn_hidden_size": 16},
        "stages": [stage | {"learning_rate": {"shape": "constant", "peak": 1e-3}}],
        "precision": "fp32",
    }
    config, threads = parse_config(raw, RunConfig, "test"), []
    request.addfinalizer(gc.enable)
    gc.disable()  # it may come in between of itself, or not at all for a long time
    for _ in range(4):
        with Topology.join(config.parallel) as topology:
            MegatronEngine(config, 64, topology)  # a reference cycle that holds process groups
        threads.append(len(os.listdir("/proc/self/task")))
    assert threads[-1] - threads[0] < 20, threads


def test_degrees_that_do_not_fit_are_refused_before_anyone_is_met() -> None:
    with pytest.raises(UserError, match=r"tensor 2 × pipeline 1 × context 1 = 2 does not divide the 1 process.*--nproc 2"):
        Topology.join(ParallelConfig(tensor=2))
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({**dict.fromkeys(_TORCHRUN, "0"), "RANK": "one"}, "must be whole numbers"),
        ({**dict.fromkeys(_TORCHRUN, "2"), "RANK": "2"}, "RANK 2 of WORLD_SIZE 2 cannot be"),
    ],
)
def test_a_broken_environment_is_named(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Place.find(environment)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Place(1, 4, 1, True).device() == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"has 2 GPU\(s\) but 4 or more processes"):
        Place(3, 4, 3, True).device()


def test_a_gpu_that_slurm_bound_to_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """--gpus-per-task=1: each process sees one GPU, the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert Place(3, 4, 3, True).device() == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_LOCALID", "0")  # of torchrun, which started four: they see the same one
    with pytest.raises(UserError, match=r"has 1 GPU\(s\) but 4 or more processes"):
        Place(3, 4, 3, True).device()


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_tasks_that_nobody_counted_are_refused(name: str) -> None:
    """srun -n 8: otherwise eight worlds of one, of which seven find the run folder taken."""
    with pytest.raises(UserError, match=rf"8 tasks were started \({name}\), but RANK is not set"):
        Place.find({name: "8"})
    assert Place.find({name: "1"}).world_size == 1
    assert Place.find({name: "8", **dict.fromkeys(_TORCHRUN, "0"), "WORLD_SIZE": "8"}).world_size == 8


def test_kernels_keep_their_order_where_megatron_core_relies_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    with pytest.raises(UserError):
        Topology.join(ParallelConfig(tensor=2))
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    with pytest.raises(UserError):
        Topology.join(ParallelConfig(context=2))
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.undo()


def test_the_longest_time_limits_there_are(tmp_path: Path) -> None:
    """The way to switch them off."""
    timeouts = TimeoutConfig(join_seconds=9e8, hang_seconds=9e8)
    with Topology.join(ParallelConfig(), timeouts=timeouts), Watchdog(tmp_path, 0, 0, timeouts.hang_seconds) as watchdog:
        watchdog.beat(1, "step")
    with pytest.raises(ValueError, match="less than 1000000000"):
        TimeoutConfig(hang_seconds=1e10)


def test_seeding_keys_the_default_generator_and_the_tracker() -> None:
    def draw(topology: Topology) -> tuple[list[float], list[float]]:
        with get_cuda_rng_tracker().fork():
            forked = torch.rand(3, device=topology.device).tolist()
        return torch.rand(3).tolist(), forked

    with Topology.join(ParallelConfig(), seed=5) as topology:
        first = draw(topology)
        assert draw(topology) != first
        topology.seed(5)
        assert draw(topology) == first
        topology.seed(6)
        assert draw(topology) != first
