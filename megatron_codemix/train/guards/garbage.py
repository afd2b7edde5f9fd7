"""Python's garbage collection on all ranks at once.

A full collection stops a process for as long as it takes to look at every object. Left to themselves, ranks stop at different
steps, and each time all others wait; at a thousand ranks somebody is always collecting.
"""

from __future__ import annotations

import gc
from types import TracebackType


class Garbage:
    """Context manager: inside, garbage is collected by `step` alone. With every_steps 0 it leaves everything as it is."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps
        self._was_enabled = False

    def __enter__(self) -> Garbage:
        if self._every_steps:
            self._was_enabled = gc.isenabled()
            gc.collect()
            gc.freeze()  # the model, the libraries: nothing of it becomes garbage, so collections need not look at it
            gc.disable()
        return self

    def step(self, done: int) -> None:
        """Step number `done` has ended."""
        if self._every_steps and done % self._every_steps == 0:
            gc.collect()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._every_steps:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
