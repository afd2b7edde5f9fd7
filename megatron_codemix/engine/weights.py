"""Weights and optimizer state as a megatron-core distributed checkpoint, and the checks that it lacks.

Every tensor is stored under its key in the whole model and with its whole shape (`optimizer.state.exp_avg.decoder…`),
cut into the pieces that the ranks hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling

from megatron_codemix.errors import UserError

_WRITERS = 1
"""Processes that write this rank's file. Each is forked with the tensors it is to write."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Write a sharded state dict into an existing empty folder. Collective."""
    dist_checkpointing.save(state, str(folder), TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=_WRITERS))


def load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill a sharded state dict from `folder`; returns the plain state dict. Collective.

    Raises UserError when the folder is no checkpoint, or one of a model of another shape: megatron-core by
    itself would fill missing rows of the embedding with zeros, silently.
    """
    try:
        stored = dist_checkpointing.load_tensors_metadata(str(folder))
    except (CheckpointingException, OSError, EOFError, ValueError) as error:
        raise UserError(f"{folder}: no readable megatron-core checkpoint ({error}); choose another checkpoint") from None
    _refuse_other_shapes(state, stored, folder)
    return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)


def _sharded_tensors(state: dict[str, Any]) -> list[ShardedTensor]:
    tensors: list[ShardedTensor] = []
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            tensors += [part for part in nested_values({"parts": value.build()}) if isinstance(part, ShardedTensor)]
        elif isinstance(value, ShardedTensor):
            tensors.append(value)
    return tensors


def _refuse_other_shapes(state: dict[str, Any], stored: dict[str, Any], folder: Path) -> None:
    problems = []
    for tensor in _sharded_tensors(state):
        if tensor.key not in stored:
            problems.append(f"has no '{tensor.key}'")
        elif tuple(stored[tensor.key].global_shape) != tuple(tensor.global_shape):
            shapes = " × ".join(map(str, stored[tensor.key].global_shape)), " × ".join(map(str, tensor.global_shape))
            problems.append(f"has '{tensor.key}' of {shapes[0]} where this run has {shapes[1]}")
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise UserError(f"{folder}: is a checkpoint of another model: it {problems[0]}{more}; use the config it was trained with")
