"""Work spread over processes, results in the order of the work, memory bounded.

Processes are spawned, never forked: they work under any thread, and a fork would copy the engine's thread pool.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_BYTES_PER_WORKER = 8 << 20


def num_workers(configured: int, input_bytes: int) -> int:
    """Processes to use: as configured; for 0 one per core, and no more than the input is worth starting."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return configured or max(1, min(cores, input_bytes // _BYTES_PER_WORKER))


class Workers:
    """A pool of processes that is started once and used for one map after another.

    count: processes; with one, everything runs here. initializer(*arguments) runs once in each process.
    """

    def __init__(self, count: int, initializer: Callable[..., object] | None = None, arguments: tuple = ()) -> None:
        self.count = max(1, count)
        self._start = (initializer, arguments)
        self._pool: ProcessPoolExecutor | None = None
        self._ready = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of `items`, at most three items per process under way; both are pickled.

        A failure in a process is raised here.
        """
        initializer, arguments = self._start
        if self.count == 1:
            if initializer is not None and not self._ready:
                initializer(*arguments)
                self._ready = True
            yield from map(function, items)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=initializer, initargs=arguments)
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(self._pool.submit(function, item))
            if len(under_way) >= 3 * self.count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
