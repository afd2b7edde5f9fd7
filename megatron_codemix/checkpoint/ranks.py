"""What checkpoints need of the processes of a run."""

from __future__ import annotations

from typing import Any, Protocol


class Ranks(Protocol):
    """What saving needs of the processes of a run; `parallel.Topology` has it."""

    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes what one process writes."""
        ...

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (small), by rank, on every process."""
        ...

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether any process set it."""
        ...
