"""Checkpoints: published whole while training goes on, opened verified, resharded, turned into a Hugging Face directory.

What is imported here needs no torch. `checkpoint.publish` writes checkpoints; `codemix convert` lies in
`checkpoint.command`, `codemix checkpoint` in `checkpoint.manage`.
"""

from __future__ import annotations

from megatron_codemix.checkpoint.attempt import Attempt, Superseded
from megatron_codemix.checkpoint.origin import as_initial_weights, begun_from, require_fitting, weights_digest
from megatron_codemix.checkpoint.ranks import Alone, Ranks, on_each, on_main
from megatron_codemix.checkpoint.record import NEUTRAL, ROUTINE, Damaged, Layout, Record, differences
from megatron_codemix.checkpoint.resuming import newest_together, open_together, resume_point, whole_before
from megatron_codemix.checkpoint.revision import code_revision
from megatron_codemix.checkpoint.state import State
from megatron_codemix.checkpoint.store import Checkpoint, discard, last_attempt, newest, prepare_store, step_folder, step_folders, step_of

__all__ = [
    "NEUTRAL",
    "ROUTINE",
    "Alone",
    "Attempt",
    "Checkpoint",
    "Damaged",
    "Layout",
    "Ranks",
    "Record",
    "State",
    "Superseded",
    "as_initial_weights",
    "begun_from",
    "code_revision",
    "differences",
    "discard",
    "last_attempt",
    "newest",
    "newest_together",
    "on_each",
    "on_main",
    "open_together",
    "prepare_store",
    "require_fitting",
    "resume_point",
    "step_folder",
    "step_folders",
    "step_of",
    "weights_digest",
    "whole_before",
]
