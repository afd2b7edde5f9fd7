"""Weights and optimizer state as a megatron-core distributed checkpoint, and the checks that it lacks.

Every tensor is stored under its key in the whole model and with its whole shape (`optimizer.state.exp_avg.decoder…`),
cut into the pieces that the ranks hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling

from megatron_codemix.engine.inventory import stored_tensors
from megatron_codemix.errors import UserError

_WRITERS = 1
"""Processes that write this rank's file. Each is forked with the tensors it is to write."""
_OPTIMIZER_KEYS = "optimizer."


def save(state: dict[str, Any], folder: Path) -> None:
    """Write a sharded state dict into an existing empty folder. Collective."""
    dist_checkpointing.save(state, str(folder), TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=_WRITERS))


def load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill a sharded state dict from `folder`; returns the plain state dict. Collective.

    Raises UserError when the folder is no checkpoint, or one of another model: megatron-core by itself would
    fill missing rows of the embedding with zeros, silently. Another precision is refused where the state
    holds an optimizer; weights alone are cast.
    """
    stored = stored_tensors(folder)
    differences = _differences(state, stored)
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise UserError(f"{folder}: is a checkpoint of another model: it {differences[0]}{more}; use the config it was trained with")
    loaded = dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    assert isinstance(loaded, dict)  # a tuple only where mismatches are to be returned
    return loaded


def _sharded_tensors(state: dict[str, Any]) -> list[ShardedTensor]:
    tensors: list[ShardedTensor] = []
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            tensors += [part for part in nested_values({"parts": value.build()}) if isinstance(part, ShardedTensor)]
        elif isinstance(value, ShardedTensor):
            tensors.append(value)
    return tensors


def _differences(state: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What a checkpoint has that does not fit what this run asks of it."""
    differences = []
    wanted = {tensor.key: tensor for tensor in _sharded_tensors(state)}
    for key, tensor in wanted.items():
        if key not in stored:
            differences.append(f"has no '{key}'")
        elif tuple(stored[key].global_shape) != tuple(tensor.global_shape):
            there, here = (" × ".join(map(str, shape)) for shape in (stored[key].global_shape, tensor.global_shape))
            differences.append(f"has '{key}' of {there} where this run has {here}")
        elif "optimizer" in state and stored[key].dtype != tensor.dtype:
            differences.append(f"has '{key}' in {stored[key].dtype} where this run has {tensor.dtype}")
    everywhere = _on_all_ranks(set(wanted))
    differences += [
        f"has '{key}', which this run has not" for key in stored if key not in everywhere and not key.startswith(_OPTIMIZER_KEYS)
    ]
    return differences


def _on_all_ranks(keys: set[str]) -> set[str]:
    """The union over ranks: a pipeline stage has only its own layers. Collective."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, keys)
    return set().union(*parts)
