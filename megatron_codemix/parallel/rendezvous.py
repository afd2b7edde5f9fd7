"""How a process finds its peers: torchrun's environment, or nobody."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_codemix.errors import UserError

_PR_SET_PDEATHSIG = 1
_joins = itertools.count()


@dataclass(frozen=True)
class Place:
    """Where this process stands among all."""

    rank: int
    world_size: int
    local_rank: int
    torchrun: bool
    """Whether the environment says so, or the process is alone."""

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Place:
        """Read RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them; none of them: a world of one.

        Raises UserError where only some are set or one is no number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls(rank=0, world_size=1, local_rank=0, torchrun=False)
        missing = [name for name in names if name not in environment]
        if missing:
            raise UserError(f"environment: {', '.join(missing)} is not set although others of {', '.join(names)} are; start with torchrun")
        try:
            rank, world_size, local_rank = (int(environment[name]) for name in names[:3])
        except ValueError:
            raise UserError("environment: RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers; start with torchrun") from None
        if not 0 <= rank < world_size or local_rank < 0:
            raise UserError(f"environment: RANK {rank} of WORLD_SIZE {world_size} cannot be; start with torchrun")
        return cls(rank, world_size, local_rank, torchrun=True)

    def device(self) -> torch.device:
        """This process's GPU, or the CPU where torch sees none.

        Raises UserError when more processes were started on a machine than it has GPUs.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(f"this machine has {count} GPU(s) but {self.local_rank + 1} or more processes; lower torchrun --nproc-per-node")
        return torch.device("cuda", self.local_rank)


def join_world(place: Place, device: torch.device, timeout: timedelta) -> None:
    """Create the default process group: nccl on GPUs, gloo elsewhere. Blocks until all have come."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.torchrun:
        _die_with_the_launcher()
        found, _, _ = next(dist.rendezvous("env://", place.rank, place.world_size, timeout=timeout))
        # torchrun's store outlives a process group: a second one under the same keys would find dead addresses and hang.
        store: dist.Store = dist.PrefixStore(f"codemix-{next(_joins)}", found)
    else:
        # A store inside the process: no port is opened, so any number of runs live on one machine.
        store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=timeout)


def _die_with_the_launcher() -> None:
    """Have Linux end this process when torchrun is killed: without it the workers would train on as orphans."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
