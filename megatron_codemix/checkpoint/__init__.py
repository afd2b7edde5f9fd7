"""Checkpoints: published atomically, verified before use, converted to and from Hugging Face.

The public face of the store; it imports no torch. `hf` and `convert` hold the conversion.
"""

from megatron_codemix.checkpoint.record import Damaged, Record, differences
from megatron_codemix.checkpoint.store import Checkpoint, State, newest, publish, resume_point, step_folders

__all__ = ["Checkpoint", "Damaged", "Record", "State", "differences", "newest", "publish", "resume_point", "step_folders"]
