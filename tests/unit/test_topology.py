"""The process grid in one process: degrees checked at birth, joining and leaving, seeds."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_codemix.config import ParallelConfig
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
from megatron_codemix.parallel.rendezvous import Place
from megatron_codemix.parallel.topology import data_degree

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


def test_degrees_that_do_not_fit_are_refused_before_anyone_is_met() -> None:
    with pytest.raises(UserError, match=r"tensor 2 × pipeline 1 × context 1 = 2 does not divide the 1 process.*--nproc 2"):
        Topology.join(ParallelConfig(tensor=2))
    assert not dist.is_initialized()
    assert data_degree(ParallelConfig(tensor=2, pipeline=2), 8) == 2


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
