"""Which rank is the slowest, and how much memory ranks have held: each says it of itself, every few hundred steps.

A step takes all ranks the same time, since each waits for the others; what tells them apart is what they did before they had to
wait for gradients. Ranks of one model replica wait for each other within a step, so a slow one makes its whole replica slow.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

_NOTABLE = 1.1
"""A rank this much slower than the median is named on the console."""
_GIB = 1 << 30


@dataclass(frozen=True)
class RankState:
    """What a rank says of itself, since the report before."""

    host: str
    seconds: float
    """Mean time of its own work in a step: reading, forward, backward, until it had to wait for other data-parallel ranks."""
    loader_seconds: float
    """Of that, waiting for its batch."""
    host_bytes: int
    """Most memory that the process has held in the host."""
    device_bytes: int | None
    """Most memory that it has held on the device; None on CPU."""


class Pace:
    """Collects one rank's times between reports."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def add(self, own_seconds: float, loader_seconds: float) -> None:
        """A step was made. own_seconds: `Engine.own_seconds`."""
        self._steps += 1
        self._own += own_seconds
        self._loader += loader_seconds

    def state(self) -> RankState:
        """The state since the last call."""
        steps = max(self._steps, 1)
        on_gpu = self._device.type == "cuda"
        state = RankState(
            host=socket.gethostname(),
            seconds=(self._own + self._loader) / steps,
            loader_seconds=self._loader / steps,
            host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device_bytes=torch.cuda.max_memory_reserved(self._device) if on_gpu else None,
        )
        self._clear()
        return state

    def _clear(self) -> None:
        self._steps = 0
        self._own = self._loader = 0.0


@dataclass(frozen=True)
class RankReport:
    """The states of all ranks, by rank."""

    states: Sequence[RankState]

    @property
    def slowest(self) -> int:
        """The rank whose own work takes longest."""
        return max(range(len(self.states)), key=lambda rank: self.states[rank].seconds)

    @property
    def median_seconds(self) -> float:
        """Of the ranks' own work in a step."""
        return median(state.seconds for state in self.states)

    @property
    def factor(self) -> float:
        """How many times the median the slowest rank takes."""
        return self.states[self.slowest].seconds / self.median_seconds if self.median_seconds > 0 else 1.0

    @property
    def scalars(self) -> dict[str, float | None]:
        """What is drawn."""
        device = self._most_device()
        return {
            "slowest_seconds": self.states[self.slowest].seconds,
            "median_seconds": self.median_seconds,
            "host_gib": self.states[self._most_host()].host_bytes / _GIB,
            "device_gib": None if device is None else (self.states[device].device_bytes or 0) / _GIB,
        }

    def as_json(self) -> dict[str, Any]:
        """The log's line: the slowest rank, and who has held most memory."""
        slow, host, device = self.slowest, self._most_host(), self._most_device()
        return {
            "slowest": slow,
            "host": self.states[slow].host,
            "seconds": self.states[slow].seconds,
            "loader_seconds": self.states[slow].loader_seconds,
            "median_seconds": self.median_seconds,
            "factor": self.factor,
            "host_memory": {"rank": host, "bytes": self.states[host].host_bytes},
            "device_memory": None if device is None else {"rank": device, "bytes": self.states[device].device_bytes},
        }

    def words(self) -> list[str]:
        """The console's lines."""
        host, device = self._most_host(), self._most_device()
        memory = f"{self.states[host].host_bytes / _GIB:.2f} GiB of the host (rank {host})"
        if device is not None:
            memory = f"{(self.states[device].device_bytes or 0) / _GIB:.2f} GiB of a device (rank {device}), " + memory
        lines = [f"most memory held by a rank so far: {memory}"]
        if len(self.states) > 1 and self.factor >= _NOTABLE:
            state = self.states[self.slowest]
            lines.append(
                f"slowest rank: {self.slowest} on {state.host}, {self.factor:.2f} × the median of {len(self.states)} ranks "
                f"({state.seconds:.3g} s of own work a step, {state.loader_seconds:.3g} s of it waiting for data)"
            )
        return lines

    def _most_host(self) -> int:
        return max(range(len(self.states)), key=lambda rank: self.states[rank].host_bytes)

    def _most_device(self) -> int | None:
        ranks = [rank for rank, state in enumerate(self.states) if state.device_bytes is not None]
        return max(ranks, key=lambda rank: self.states[rank].device_bytes or 0, default=None)
