"""How much room a run's checkpoints need, and whether their disk has it: known before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_codemix.checkpoint import NEUTRAL, step_folders
from megatron_codemix.config import RunConfig

_BYTES_PER_PARAMETER = 12
"""Weight and two moments in fp32."""


def checkpoint_bytes(config: RunConfig, rows: int) -> int:
    """Of one checkpoint's weights/, without headers; rows: of the embedding."""
    return _BYTES_PER_PARAMETER * config.model.num_parameters(rows)


def most_at_once(config: RunConfig, num_steps: int) -> int:
    """How many checkpoints lie on the disk at most, the last one while it is made: the neutral form counts twice then."""
    settings = config.checkpoint
    before = (num_steps - 1) // settings.every_steps if settings.every_steps else 0
    kept = min(before, settings.keep)
    for_ever = 0
    if settings.every_steps and settings.keep_every_steps:
        saved = range(settings.every_steps, num_steps, settings.every_steps)
        for_ever = sum(step % settings.keep_every_steps == 0 for step in saved[: max(before - kept, 0)])
    return kept + for_ever + (2 if settings.final_form == NEUTRAL else 1)


def lack_of_space(config: RunConfig, num_steps: int, rows: int) -> str | None:
    """Words for a disk that has no room for all the checkpoints of a run; None where it has, or does not say."""
    needed = most_at_once(config, num_steps) * checkpoint_bytes(config, rows)
    try:
        there = sum(path.stat().st_size for folder in step_folders(config.output) for path in folder.rglob("*"))
        free = shutil.disk_usage(_existing(config.output)).free
    except OSError:
        return None
    if free + there >= needed:
        return None
    remedy = "make room, or lower checkpoint.keep" + (
        ", or set checkpoint.final_form=routine" if config.checkpoint.final_form == NEUTRAL else ""
    )
    return f"{config.output}: {size_words(free)} free, but its checkpoints take up to {size_words(needed)}: {remedy}"


def size_words(num_bytes: float) -> str:
    """'1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
