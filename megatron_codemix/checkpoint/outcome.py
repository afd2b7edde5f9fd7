"""What became of a save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_codemix.checkpoint.record import Form


@dataclass(frozen=True)
class Saved:
    """A published checkpoint."""

    step: int
    folder: Path
    form: Form
    """As it lies there: routine, too, where the neutral form was wanted and there was no room for it."""
    seconds: float
    """From its beginning to its publication."""
    stall_seconds: float
    """How long training waited for it, on this rank."""
    warning: str | None
    """What went wrong beside it (no room for the neutral form, an old checkpoint that could not be deleted)."""


@dataclass(frozen=True)
class Dropped:
    """A save that came to nothing; the checkpoints before it are as they were."""

    step: int
    reason: str
    """What refused, on which rank."""
    stall_seconds: float


Outcome = Saved | Dropped
