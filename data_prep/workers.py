"""Work spread over processes, results in the order of the work, memory bounded, progress visible inside an item.

Processes are spawned, never forked: they work under any thread, and a fork would copy the engine's thread pool. They live
as long as the pool, end with their parent however it ends, and share nothing but a few counters.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

from megatron_codemix.errors import JobError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_BYTES_PER_WORKER = 8 << 20
_POLL_SECONDS = 0.5
_AHEAD = 64
"""Items whose results may wait for an earlier one: they are small, and one long item must not stop the others."""


class Told(NamedTuple):
    """What processes have done since the pool began."""

    input_bytes: int
    documents: int
    text_bytes: int


def num_workers(configured: int, input_bytes: int) -> int:
    """Processes to use: as configured; for 0 one per core, and no more than the input is worth starting."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return configured or max(1, min(cores, input_bytes // _BYTES_PER_WORKER))


class _Here:
    """Counters of this process: a slice of the pool's in a worker, else of its own."""

    counters: Any = [0] * len(Told._fields)
    first = 0
    on_told: Callable[[], None] | None = None
    next_poll = 0.0


def tell(input_bytes: int = 0, documents: int = 0, text_bytes: int = 0) -> None:
    """Count work that is done, for the progress line; called by what runs in a pool, as often as it likes."""
    counters, first = _Here.counters, _Here.first
    counters[first] += input_bytes
    counters[first + 1] += documents
    counters[first + 2] += text_bytes
    if _Here.on_told is not None and (now := time.monotonic()) >= _Here.next_poll:
        _Here.next_poll = now + _POLL_SECONDS
        _Here.on_told()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _failure(error: BaseException) -> tuple[str, Any]:
    """A failure as it crosses processes."""
    if isinstance(error, UserError):
        return "user", error.problems
    if isinstance(error, JobError):
        return "job", str(error)
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, made the line before
    except Exception:
        error = RuntimeError(repr(error))
    return "error", (error, text)


def _serve(pipe: connection.Connection, counters: Any, number: int, start: tuple) -> None:
    """What a process does: take an item, work, answer; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Here.counters, _Here.first = counters, number * len(Told._fields)
    initializer, arguments = start
    try:
        if initializer is not None:
            initializer(*arguments)
        while True:
            function, item = pipe.recv()
            try:
                answer = ("result", function(item))
            except BaseException as error:  # whatever it is, the parent must hear of it
                answer = _failure(error)
            pipe.send(answer)
    except (EOFError, OSError):
        return


def _open(answer: tuple[str, Any]) -> Any:
    kind, value = answer
    if kind == "result":
        return value
    if kind == "user":
        raise UserError(*value)
    if kind == "job":
        raise JobError(value)
    error, text = value
    error.add_note("In a worker process:\n" + text)
    raise error


class _Process:
    def __init__(self, context: Any, counters: Any, number: int, start: tuple) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, counters, number, start), daemon=True)
        self.process.start()
        theirs.close()
        self.place: int | None = None
        """Number of the item it works on."""

    def give(self, place: int, function: Callable, item: Any) -> None:
        self.place = place
        self.pipe.send((function, item))

    def take(self) -> tuple[int, tuple[str, Any]]:
        """(number of the item, answer). Raises JobError when the process is dead."""
        assert self.place is not None
        place, self.place = self.place, None
        try:
            return place, self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            why = " (often: out of memory; give fewer workers)" if code == -signal.SIGKILL else ""
            raise JobError(
                f"a worker process ended with {how}{why}; what is finished stays, so the same command goes on from here"
            ) from None


class Workers:
    """A pool of processes that is started once, when first needed, and used for one map after another.

    count: processes; with one, everything runs here. initializer(*arguments) runs once in each process.
    """

    def __init__(self, count: int, initializer: Callable[..., object] | None = None, arguments: tuple = ()) -> None:
        self.count = max(1, count)
        self._start = (initializer, arguments)
        self._processes: list[_Process] = []
        self._counters: Any = [0] * len(Told._fields)
        self._ready = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        for one in self._processes:
            one.pipe.close()
            if error is not None:
                one.process.terminate()
        for one in self._processes:
            one.process.join(10)
            if one.process.is_alive():
                one.process.kill()
        self._processes = []

    def told(self) -> Told:
        """What the processes have told so far."""
        width = len(Told._fields)
        return Told(*(int(sum(self._counters[place::width])) for place in range(width)))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], on_told: Callable[[], None] | None = None) -> Iterator[Result]:
        """Results in the order of `items`; both are pickled. A failure in a process is raised here.

        on_told: called about twice a second while items are under way, to show `told()`.
        """
        if self.count == 1:
            yield from self._map_here(function, items, on_told)
            return
        self._begin()
        waiting: dict[int, tuple[str, Any]] = {}
        idle = deque(one for one in self._processes if one.place is None)
        numbered = enumerate(items)
        done, given, more = 0, 0, True
        while more or done < given:
            while more and idle and given < done + self.count + _AHEAD:
                try:
                    place, item = next(numbered)
                except StopIteration:
                    more = False
                    break
                idle[0].give(place, function, item)
                idle.popleft()
                given = place + 1
            busy = {one.pipe: one for one in self._processes if one.place is not None}
            for pipe in connection.wait(list(busy), _POLL_SECONDS) if busy else []:
                place, answer = busy[pipe].take()  # type: ignore[index]
                idle.append(busy[pipe])  # type: ignore[index]
                waiting[place] = answer
            if on_told is not None:
                on_told()
            while done in waiting:
                result = _open(waiting.pop(done))
                done += 1
                yield result

    def _begin(self) -> None:
        if self._processes:
            # a map that was left before its end has answers under way: nobody wants them
            for one in self._processes:
                if one.place is not None:
                    one.take()
            return
        context = multiprocessing.get_context("spawn")
        self._counters = context.RawArray("q", self.count * len(Told._fields))
        self._processes = [_Process(context, self._counters, number, self._start) for number in range(self.count)]

    def _map_here(self, function: Callable[[Item], Result], items: Iterable[Item], on_told: Callable[[], None] | None) -> Iterator[Result]:
        initializer, arguments = self._start
        if initializer is not None and not self._ready:
            initializer(*arguments)
        self._ready = True
        before = _Here.counters, _Here.first, _Here.on_told
        for item in items:
            _Here.counters, _Here.first, _Here.on_told = self._counters, 0, on_told
            try:
                result = function(item)
            finally:
                _Here.counters, _Here.first, _Here.on_told = before
            yield result
