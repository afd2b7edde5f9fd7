"""Checkpoints: publishing one whole, opening it verified, and turning it into a Hugging Face directory.

`codemix convert` lies in `checkpoint.command`; conversion is not imported here, so that training needs no transformers.
"""

from __future__ import annotations

from megatron_codemix.checkpoint.record import Damaged, Record, differences
from megatron_codemix.checkpoint.store import Checkpoint, Ranks, State, newest, publish, resume_point, step_folders

__all__ = ["Checkpoint", "Damaged", "Ranks", "Record", "State", "differences", "newest", "publish", "resume_point", "step_folders"]
