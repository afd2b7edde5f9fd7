"""How a process finds its peers: by the environment that torchrun and `codemix train --nproc` set, or there are none."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_codemix import worker
from megatron_codemix.errors import JobError, UserError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25
"""Seconds between looks at the roll."""
_REMEDY = "start with `codemix train --nproc N` or torchrun"
_NAMED = 8
"""Ranks and hosts that a message lists."""
_joins = itertools.count()
_stores: dict[Place, dist.TCPStore] = {}


@dataclass(frozen=True)
class Place:
    """Where this process stands among all."""

    rank: int
    world_size: int
    local_rank: int
    launched: bool
    """Whether the environment says so, or the process is alone."""
    host: str = ""
    """Where all meet (MASTER_ADDR)."""
    port: int = 0
    """MASTER_PORT."""

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Place:
        """Read RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them; none of them: a world of one.

        Raises UserError where only some are set or one is no number, or a scheduler started several tasks without them.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        worker.refuse_uncounted(environment)
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls(rank=0, world_size=1, local_rank=0, launched=False)
        missing = [name for name in names if name not in environment]
        if missing:
            raise UserError(f"environment: {', '.join(missing)} is not set although others of {', '.join(names)} are; {_REMEDY}")
        try:
            rank, world_size, local_rank, port = (int(environment[name]) for name in names if name != "MASTER_ADDR")
        except ValueError:
            raise UserError(f"environment: RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers; {_REMEDY}") from None
        if not 0 <= rank < world_size or local_rank < 0:
            raise UserError(f"environment: RANK {rank} of WORLD_SIZE {world_size} cannot be; {_REMEDY}")
        return cls(rank, world_size, local_rank, True, environment["MASTER_ADDR"], port)

    def device(self) -> torch.device:
        """This process's GPU, or the CPU where torch sees none.

        Raises UserError when more processes were started on a machine than it has GPUs.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        count = torch.cuda.device_count()
        if count == 1 and os.environ.get("SLURM_LOCALID") == str(self.local_rank):
            return torch.device("cuda", 0)  # SLURM has bound a GPU of its own to each of its tasks
        if self.local_rank >= count:
            raise UserError(
                f"this machine has {count} GPU(s) but {self.local_rank + 1} or more processes; lower --nproc (torchrun: --nproc-per-node)"
            )
        return torch.device("cuda", self.local_rank)


def join_world(place: Place, device: torch.device, join_seconds: float, collective_seconds: float) -> None:
    """Create the default process group: nccl on GPUs, gloo elsewhere. Blocks until all have come.

    join_seconds: to wait for the others; collective_seconds: for each collective to end, from then on.
    Raises JobError that names who has not come.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.launched:
        worker.die_with(os.getppid())
        # The store outlives a process group, and torchrun's the processes of an attempt: under the same keys a second one would
        # find dead addresses and hang.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store: dist.Store = dist.PrefixStore(f"codemix-{attempt}-{next(_joins)}", _meeting_point(place, join_seconds))
        _call_the_roll(store, place, join_seconds)
    else:
        # A store inside the process: no port is opened, so any number of runs live on one machine.
        store = dist.HashStore()
    timeout = timedelta(seconds=collective_seconds)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=timeout)


def _meeting_point(place: Place, seconds: float) -> dist.TCPStore:
    """The store of the whole job, one connection a process however often it joins."""
    if place not in _stores:
        served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        mine = place.rank == 0 and not served
        where = f"{place.host}:{place.port}"
        try:
            _stores[place] = dist.TCPStore(
                place.host,
                place.port,
                place.world_size,
                is_master=mine,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
                master_listen_fd=_own_descriptor() if mine else None,
            )
        except RuntimeError as error:  # torch's DistError among them
            if mine:
                raise JobError(f"rank 0 cannot serve {where} ({_first_line(error)}); choose another MASTER_PORT") from None
            raise JobError(
                f"rank {place.rank} waited {seconds:g} s for {where}, where rank 0 meets the others, and nobody answered: "
                "rank 0 has not come; look at what it wrote, or raise timeouts.join_seconds"
            ) from None
    return _stores[place]


def _own_descriptor() -> int | None:
    """The socket that `codemix train --nproc` has bound for rank 0, so that nobody takes the port; listening from now on."""
    if worker.STORE_DESCRIPTOR not in os.environ:
        return None
    descriptor = int(os.environ[worker.STORE_DESCRIPTOR])
    with socket.socket(fileno=os.dup(descriptor)) as bound:
        bound.listen(socket.SOMAXCONN)
    return descriptor


def _call_the_roll(store: dist.Store, place: Place, seconds: float) -> None:
    """Wait until every rank has said that it is here. Raises JobError naming those that have not."""
    try:
        store.set(f"rank-{place.rank}", f"{os.getpid()} {socket.gethostname()}")
        if store.add("here", 1) == place.world_size:
            store.set("all", "here")
        end, pause = time.monotonic() + seconds, _SHORTEST_PAUSE
        while not store.check(["all"]):  # store.wait would write torch's own warnings when the time is over
            if time.monotonic() > end:
                raise JobError(_who_is_missing(store, place, seconds))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except RuntimeError as error:
        raise JobError(f"rank {place.rank}: the meeting point {place.host}:{place.port} was lost ({_first_line(error)})") from None


def _who_is_missing(store: dist.Store, place: Place, seconds: float) -> str:
    here = [rank for rank in range(place.world_size) if store.check([f"rank-{rank}"])]
    hosts = Counter(store.get(f"rank-{rank}").decode().partition(" ")[2] for rank in here)
    missing = sorted(set(range(place.world_size)) - set(here))
    names = ", ".join(map(str, missing[:_NAMED])) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
    who = f"rank{'s' if len(missing) > 1 else ''} {names} {'have' if len(missing) > 1 else 'has'} not come"
    came = ", ".join(f"{count} on {host}" for host, count in hosts.most_common(_NAMED))
    return (
        f"rank {place.rank} waited {seconds:g} s for {place.world_size} processes; {who} (here: {came}); "
        "look at what they wrote, or raise timeouts.join_seconds"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
