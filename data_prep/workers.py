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
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from data_prep.told import Told, tell_to
from megatron_codemix.errors import JobError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
_BYTES_PER_WORKER = 8 << 20
_POLL_SECONDS = 0.5
_AHEAD = 64
"""Items whose results may wait for an earlier one: they are small, and one long item must not stop the others."""


def num_workers(configured: int, input_bytes: int) -> int:
    """Processes to use: as configured; for 0 one per core, and no more than the input is worth starting."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return configured or max(1, min(cores, input_bytes // _BYTES_PER_WORKER))


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


def _serve(pipe: connection.Connection, counters: Any, number: int) -> None:
    """What a process does: take an item, work, answer; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tell_to(counters, number * len(Told._fields))
    try:
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
    if kind == "raised":
        raise value
    error, text = value
    error.add_note("In a worker process:\n" + text)
    raise error


def _initialise(start: tuple[Callable, tuple]) -> None:
    function, arguments = start
    function(*arguments)


class _Process:
    """A process, as its thread in the parent sees it."""

    def __init__(self, context: Any, counters: Any, number: int) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, counters, number), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, function: Callable, item: Any) -> tuple[str, Any]:
        """The answer, a failure among them."""
        try:
            self.pipe.send((function, item))
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
        code = self.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        why = " (often: out of memory; give fewer workers)" if code == -signal.SIGKILL else ""
        return "job", f"a worker process ended with {how}{why}; what is finished stays, so the same command goes on from here"


class _Map(Generic[Item, Result]):
    """One map under way: what hands out items and takes answers, from several threads."""

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> None:
        self.function, self._items, self._ahead = function, enumerate(items), ahead
        self._changed = threading.Condition()
        self._answers: dict[int, tuple[str, Any]] = {}
        self._given = self._yielded = 0
        self._ended = False

    def take(self, wait: bool) -> tuple[int, Item] | None:
        """The next item with its number; None when there is none, or none yet and `wait` is false."""
        with self._changed:
            while not self._ended and self._given >= self._yielded + self._ahead:
                if not wait:
                    return None
                self._changed.wait()
            if self._ended:
                return None
            try:
                place, item = next(self._items)
            except StopIteration:
                self._ended = True
                self._changed.notify_all()
                return None
            except BaseException as error:  # the iterator's own; told in its place
                self._answers[self._given] = "raised", error
                self._given += 1
                self._ended = True
                self._changed.notify_all()
                return None
            self._given = place + 1
            return place, item

    def answer(self, place: int, answer: tuple[str, Any]) -> None:
        """Keep what became of an item; behind a failure no item is handed out."""
        with self._changed:
            self._answers[place] = answer
            self._ended = self._ended or answer[0] != "result"
            self._changed.notify_all()

    def ready(self) -> Iterator[Result]:
        """Results that are there, in order. Raises a failure as soon as it is known."""
        while True:
            with self._changed:
                for answer in self._answers.values():
                    if answer[0] != "result":
                        _open(answer)
                answer = self._answers.pop(self._yielded, None)
                if answer is None:
                    return
                self._yielded += 1
                self._changed.notify_all()
            yield answer[1]

    def wait(self, seconds: float) -> bool:
        """Wait for an answer, at most so long; whether there is any still to come."""
        with self._changed:
            if self._ended and self._yielded == self._given:
                return False
            if self._yielded not in self._answers:
                self._changed.wait(seconds)
            return True

    def end(self) -> None:
        """Hand out no more items."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Workers:
    """A pool of processes that is started once, when first needed, and used for one map after another.

    count: processes, this one included: it works too, so that a start is saved. initializer(*arguments) runs once in each.
    """

    def __init__(self, count: int, initializer: Callable[..., object] | None = None, arguments: tuple = ()) -> None:
        self.count = max(1, count)
        self._initializer: tuple | None = None if initializer is None else (initializer, arguments)
        self._first: list[tuple[Callable, Any]] = []
        self._processes: list[_Process] = []
        self._threads: list[threading.Thread] = []
        self._counters: Any = [0] * len(Told._fields)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        for one in self._processes:
            if error is not None:
                one.process.terminate()
        for thread in self._threads:
            thread.join(10)
        for one in self._processes:
            one.pipe.close()
            one.process.join(10)
            if one.process.is_alive():
                one.process.kill()
        self._processes = []

    def told(self) -> Told:
        """What the processes have told so far."""
        width = len(Told._fields)
        return Told(*(int(sum(self._counters[place::width])) for place in range(width)))

    def everywhere(self, function: Callable[[Item], object], item: Item) -> None:
        """Call function(item) in each process, in those that are started later before anything else."""
        function(item)
        self._first.append((function, item))
        for one in self._processes:
            _open(one.call(function, item))

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], on_told: Callable[[], None] | None = None
    ) -> Generator[Result, None, None]:
        """Results in the order of `items`; both are pickled where they cross processes. A failure in a process is raised here.

        on_told: called about twice a second while items are under way, to show `told()`.
        """
        if self._initializer is not None:
            initializer, self._initializer = self._initializer, None
            self.everywhere(_initialise, initializer)
        if self.count > 1 and not self._processes:
            self._begin()
        for thread in self._threads:  # of a map that was left before its end
            thread.join()
        under_way: _Map[Item, Result] = _Map(function, items, self.count + _AHEAD)
        self._threads = [threading.Thread(target=self._drive, args=(one, under_way), daemon=True) for one in self._processes]
        for thread in self._threads:
            thread.start()
        try:
            while (taken := under_way.take(wait=False)) is not None:
                under_way.answer(taken[0], self._here(function, taken[1], on_told))
                yield from under_way.ready()
            while under_way.wait(_POLL_SECONDS):
                if on_told is not None:
                    on_told()
                yield from under_way.ready()
                if (taken := under_way.take(wait=False)) is not None:
                    under_way.answer(taken[0], self._here(function, taken[1], on_told))
            yield from under_way.ready()
        finally:
            under_way.end()

    @staticmethod
    def _drive(process: _Process, under_way: _Map) -> None:
        while (taken := under_way.take(wait=True)) is not None:
            under_way.answer(taken[0], process.call(under_way.function, taken[1]))

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._counters = context.RawArray("q", self.count * len(Told._fields))
        self._processes = [_Process(context, self._counters, number) for number in range(1, self.count)]
        for one in self._processes:
            for function, item in self._first:
                _open(one.call(function, item))

    def _here(self, function: Callable[[Item], Result], item: Item, on_told: Callable[[], None] | None) -> tuple[str, Any]:
        before = tell_to(self._counters, 0, on_told)
        try:
            return "result", function(item)
        except Exception as error:  # with its traceback, as it is
            return "raised", error
        finally:
            tell_to(*before)
