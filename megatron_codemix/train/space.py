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
    regular = range(settings.every_steps, num_steps, settings.every_steps) if settings.every_steps else range(0)
    saved = sorted({*regular, *(step for step in settings.keep_steps if step < num_steps)}) if settings.keep_steps else regular
    kept = min(len(saved), settings.keep)
    every, named = settings.keep_every_steps, set(settings.keep_steps)
    old = saved[: len(saved) - kept] if every or named else ()
    for_ever = sum((every > 0 and step % every == 0) or step in named for step in old)
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
