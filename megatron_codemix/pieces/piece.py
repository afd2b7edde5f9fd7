"""A piece: a run of consecutive elements of one rank's block of one tensor of a model's training state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

PARAM, EXP_AVG, EXP_AVG_SQ = "param", "exp_avg", "exp_avg_sq"
KINDS = (PARAM, EXP_AVG, EXP_AVG_SQ)
"""What is kept of each weight: the fp32 master weight and AdamW's two moments, all of one shape."""


@dataclass(frozen=True)
class Block:
    """The rectangular part of a whole tensor that a layout gives to one rank."""

    key: str
    """Name of the tensor in the whole model, as megatron-core's sharded state dict has it; layers counted over all stages."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    """Of the block's first element, per dimension."""
    size: tuple[int, ...]
    """Of the block, per dimension."""

    @property
    def num_elements(self) -> int:
        """Elements of the block."""
        return math.prod(self.size)


@dataclass(frozen=True)
class Piece:
    """Elements start ≤ i < stop of a block, counted row-major."""

    block: Block
    kind: str
    """One of KINDS."""
    start: int
    stop: int
    data: Tensor
    """fp32 (stop − start,): a view of live memory, or a copy of it on the host."""
