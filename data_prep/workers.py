"""Work spread over processes, results in the order of the work, memory bounded."""

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


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    initializer: Callable[..., None],
    arguments: tuple = (),
) -> Iterator[Result]:
    """`map` over processes: results in the order of `items`, at most three items per worker under way.

    initializer(*arguments) runs once in each process; function and items are pickled. With one worker everything runs
    here. A failure in a worker is raised here, and what is under way is given up.
    """
    if workers <= 1:
        initializer(*arguments)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer, initargs=arguments) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) >= 3 * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
