"""What checkpoints need of the processes of a run, and how what one of them meets is told to all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from megatron_codemix.errors import JobError, PassingError, UserError

_T = TypeVar("_T")
_ROUND_SECONDS = 2.0
_TOLD = (UserError, JobError, OSError)
"""What is told to the other ranks. A defect of ours is not: its rank ends with a traceback, and the launcher ends the others."""


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


class Alone:
    """The ranks of a run of one process, before or without `parallel.Topology`."""

    rank, world_size, is_main = 0, 1, True

    def broadcast(self, value: Any) -> Any:
        """It is its own."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """There is one."""
        return [value]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Its own."""
        return flags


def on_main(ranks: Ranks, work: Callable[[], _T]) -> _T:
    """What `work` (of seconds) returns on the main process, on every process. Collective.

    Raises on every process what it raised there: UserError, JobError, an OSError as JobError.
    """
    value, error = _tried(work) if ranks.is_main else (None, None)
    value, told = ranks.broadcast((value, _told(error)))
    _raise(error, [told])
    return value


def on_each(ranks: Ranks, work: Callable[[], _T]) -> _T:
    """What `work` returns on this process, once it has succeeded on all. Collective; `work` may be so, too. Raises as `on_main`."""
    value, error = _tried(work)
    _raise(error, ranks.gather(_told(error)))
    return value  # type: ignore[return-value] - there was no error


def in_rounds(ranks: Ranks, work: Callable[[Callable[[], None]], _T], beat: Callable[[], None]) -> list[_T]:
    """What `work` returned on each process, by rank: work of hours, of which some may have much and others nothing. Collective.

    It runs in a thread and calls what it is given when it has got on; it must talk to no other rank. The ranks meet every
    few seconds meanwhile, so that nobody waits long enough to be taken for dead, and call `beat` if one has got on.
    Raises as `on_main`.
    """
    task = _Task(work)
    busy = True
    while busy:
        task.join(_ROUND_SECONDS)
        busy, moved = ranks.any_of(task.is_alive(), task.has_moved())
        if moved:
            beat()
    if task.error is not None and not isinstance(task.error, _TOLD):
        raise task.error
    outcomes = ranks.gather((task.value, _told(task.error)))
    _raise(task.error, [told for _, told in outcomes])
    return [value for value, _ in outcomes]


class _Task(threading.Thread, Generic[_T]):
    """A daemon: a process that ends does not wait for its disk."""

    def __init__(self, work: Callable[[Callable[[], None]], _T]) -> None:
        super().__init__(name="codemix-rounds", daemon=True)
        self._work, self._moves, self._seen = work, 0, 0
        self.value: _T | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._work(self._move)
        except BaseException as error:  # the main thread raises it
            self.error = error

    def has_moved(self) -> bool:
        """Whether it has got on since this was last asked."""
        before, self._seen = self._seen, self._moves
        return self._seen != before

    def _move(self) -> None:
        self._moves += 1


_Told = tuple[type, tuple[str, ...]]
"""UserError, PassingError or JobError, and its lines."""


def _tried(work: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
    try:
        return work(), None
    except _TOLD as error:
        return None, error


def _told(error: BaseException | None) -> _Told | None:
    if isinstance(error, UserError):
        return PassingError if isinstance(error, PassingError) else UserError, error.problems
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return JobError, (f"{where}{error.strerror or error}; mend that, then start the same command again",)
    return (JobError, (str(error),)) if isinstance(error, JobError) else None


def _raise(own: BaseException | None, told: list[_Told | None]) -> None:
    """This rank's error, else the first of another rank."""
    if own is not None and not isinstance(own, OSError):
        raise own
    for kind, problems in filter(None, [_told(own), *told]):
        raise kind(*problems) from own
