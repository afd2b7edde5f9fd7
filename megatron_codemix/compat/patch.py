"""What one patch of megatron-core is: a named object that says what it cures and can prove that it is still needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """One change to a library that is not ours, installed by `compat.install()` and by nobody else."""

    name: str
    """Short, stable, used in reports and tests."""
    cures: str
    """What a user sees without it, in words."""
    shows: str
    """Part of the error that `symptom` raises where the patch is missing."""
    applies: Callable[[], bool]
    """Whether this machine and its libraries need the patch; it is never installed where this is false."""
    symptom: Callable[[], None]
    """Exercises the library (see symptoms.py); raises exactly where the patch is missing and needed."""
    install: Callable[[], None]
    """Applies the patch to this process; called at most once."""

    def still_needed(self) -> bool:
        """Whether the library shows the symptom. Only meaningful in a process where the patch is not installed."""
        try:
            self.symptom()
        except Exception as error:
            if self.shows not in str(error):
                raise
            return True
        return False
