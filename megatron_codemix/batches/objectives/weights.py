"""Loss weights by the kind of segment that a label lies in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.part import Context
from megatron_codemix.shards import Kind


class LossWeights:
    """A factor for the loss of each kind of label; kinds of weight 0 are no targets, so that they are not in the denominator."""

    def __init__(self, weights: Mapping[str, float], context: Context) -> None:
        """weights: name of a `shards.Kind` in lower case → factor; others have 1."""
        self._table = np.ones(256, np.float32)
        for kind in Kind:
            self._table[kind] = weights.get(kind.name.lower(), 1.0)

    def apply(self, block: Block) -> None:
        """See `Part.apply`."""
        found = self._table[block.kinds]
        block.exclude(found == 0)
        block.weights = found if block.weights is None else block.weights * found
