"""The one object that knows the process grid.

    with Topology.join(config.parallel, seed=config.seeds.init) as topology:
        engine = MegatronEngine(config, vocab_size, topology)

The same lines serve a single process, `codemix train --nproc 8`, and torchrun on many machines. A degree of 1 is the
identity: its groups exist and hold one rank, so nothing above branches on them.
"""

from __future__ import annotations

import gc
import math
import os
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_codemix import compat, worker
from megatron_codemix.config import ParallelConfig, TimeoutConfig, data_degree
from megatron_codemix.parallel.rendezvous import Place, join_world

_DEFAULT = TimeoutConfig()
_MARGIN_SECONDS = 60.0
"""By which collectives wait longer than the watchdog: it writes the stacks of all ranks, where they only fail."""


@dataclass(frozen=True)
class Axis:
    """One dimension of the grid, seen from this process."""

    size: int
    """Ranks along it (the degree)."""
    rank: int
    """Place of this process along it, from 0."""
    group: dist.ProcessGroup = field(repr=False)
    """The ranks that differ from this one along this dimension only."""


class Topology:
    """The process grid of a run, joined: ranks, groups, device. `leave` it, or use it as a context manager."""

    def __init__(self, place: Place, device: torch.device, seed: int) -> None:
        """Reads the grid that megatron-core has just built; `Topology.join` is the way in."""
        self.rank, self.world_size = place.rank, place.world_size
        """This process among all."""
        self.device = device
        """cuda:LOCAL_RANK, or cpu."""
        ps = parallel_state
        self.tensor = _axis(ps.get_tensor_model_parallel_group())
        self.pipeline = _axis(ps.get_pipeline_model_parallel_group())
        self.context = _axis(ps.get_context_parallel_group())
        self.data = _axis(ps.get_data_parallel_group())
        """Ranks that see different samples; data.rank and data.size are what a Loader wants."""
        self.data_and_context = _axis(ps.get_data_parallel_group(with_context_parallel=True))
        """Ranks over which losses, token counts and gradients are summed."""
        self._joined = True
        product = self.tensor.size * self.pipeline.size * self.context.size * self.data.size
        assert product == self.world_size, f"the grid holds {product} ranks, the world {self.world_size}"
        self.seed(seed)

    @classmethod
    def join(cls, parallel: ParallelConfig, *, seed: int = 0, timeouts: TimeoutConfig = _DEFAULT) -> Topology:
        """Meet the other processes, build megatron-core's groups, seed its random states. May be called again after `leave`.

        Installs what `compat` has for this machine. Blocks until every process has come, at most `timeouts.join_seconds`.
        Raises UserError when the degrees do not fit the number of processes, the GPUs do not suffice, or megatron-core is
        not the proven version: before any peer is met; JobError naming the ranks that have not come.
        """
        if parallel.tensor > 1 or parallel.context > 1:
            # Before CUDA begins. Up to Hopper, kernels run in the order in which they were queued only with one connection, and
            # megatron-core's overlap of communication and computation relies on that order.
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        compat.install()
        place = Place.find(os.environ)
        data_degree(parallel, place.world_size)
        device = place.device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        assert not dist.is_initialized(), "this process has joined a process group already; leave it first"
        gc.collect()  # engines are reference cycles that hold process groups of a topology that was left, and these hold threads
        collective_seconds = timeouts.hang_seconds + _MARGIN_SECONDS
        join_world(place, device, timeouts.join_seconds, collective_seconds)
        try:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=parallel.tensor,
                pipeline_model_parallel_size=parallel.pipeline,
                virtual_pipeline_model_parallel_size=parallel.virtual_stages if parallel.virtual_stages > 1 else None,
                context_parallel_size=parallel.context,
                distributed_timeout_minutes=collective_seconds / 60,  # type: ignore[arg-type] - goes into a timedelta as it is
            )
            return cls(place, device, seed)
        except BaseException:
            _destroy()
            raise

    @property
    def data_rank(self) -> int:
        """Place among the ranks that see different samples."""
        return self.data.rank

    @property
    def data_size(self) -> int:
        """Number of ranks that see different samples."""
        return self.data.size

    def data_ranks_of_node(self) -> tuple[int, ...]:
        """The data-parallel ranks of the processes on this machine, ascending. Collective."""
        places = self.gather((os.environ.get("GROUP_RANK", socket.gethostname()), self.data.rank))
        return tuple(sorted({rank for machine, rank in places if machine == places[self.rank][0]}))

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files that one process writes."""
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        """Whether this process embeds tokens."""
        return self.pipeline.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process computes the loss."""
        return self.pipeline.rank == self.pipeline.size - 1

    def seed(self, seed: int) -> None:
        """Key every generator of this process anew: torch's, and megatron-core's tracker (which adds the tensor rank)."""
        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed)

    def barrier(self) -> None:
        """Wait for every process of the run."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (small, picklable: a decision, a path) on every rank. Collective."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Each rank's `value` (small, picklable), by rank, on every rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether any rank set it: one small all-reduce, cheap enough for every step. Collective."""
        if self.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(vote > 0 for vote in votes.tolist())

    def worst_of(self, *values: float) -> tuple[float, ...]:
        """Of each value the worst on any rank: NaN, else infinity, else the largest; the same on every rank. Collective.

        A number that all ranks have comes back as it is, bit for bit.
        """
        if self.world_size == 1:
            return values
        # what a maximum makes of NaN differs between gloo and NCCL, so finite numbers and how bad the others are go apart
        badness = [2.0 if math.isnan(value) else float(math.isinf(value)) for value in values]
        finite = [0.0 if bad else value for value, bad in zip(values, badness)]
        both = torch.tensor([finite, badness], dtype=torch.float64, device=self.device)
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return tuple((value, math.inf, math.nan)[int(bad)] for value, bad in zip(*both.tolist()))

    def leave(self) -> None:
        """Destroy the process group and megatron-core's state; may be called twice. Waits for nobody."""
        if self._joined:
            self._joined = False
            _destroy()

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an error the peers may be anywhere: waiting for them would turn a crash into a hang.
        if error is not None:
            worker.record(error)  # before the peers notice: the first failure is the cause
        try:
            if error is None and self._joined:
                self.barrier()
        finally:
            self.leave()

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} {axis.rank}/{axis.size}" for name, axis in self._axes().items())
        return f"Topology(rank {self.rank}/{self.world_size} on {self.device}: {axes})"

    def _axes(self) -> dict[str, Axis]:
        return {"tensor": self.tensor, "pipeline": self.pipeline, "context": self.context, "data": self.data}


def _axis(group: Any) -> Axis:
    assert isinstance(group, dist.ProcessGroup), f"this process is in no group of this kind: {group!r}"
    return Axis(size=group.size(), rank=group.rank(), group=group)


def _destroy() -> None:
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
