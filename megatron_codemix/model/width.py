"""What a parameter's initial weights, learning rate and weight decay are multiplied by under width transfer (µP)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_codemix.config import RunConfig

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


@dataclass(frozen=True)
class Multipliers:
    """Of one parameter."""

    init_std: float = 1.0
    learning_rate: float = 1.0
    weight_decay: float = 1.0
    """Beside the learning rate, with which AdamW multiplies it: their product is what a step takes away, and does not change."""


def multipliers(config: RunConfig, name: str, ndim: int) -> Multipliers:
    """Of the parameter that megatron-core calls `name` (prefixes of wrappers allowed), with so many dimensions.

    Yang et al. 2022 (arXiv 2203.03466), table 3, the columns for Adam, with m = hidden_size / base_hidden_size: hidden matrices
    variance 1/m and rate 1/m; the output matrix variance 1/m² and rate 1/m; what has one dimension that does not grow, nothing.
    """
    if config.width_transfer is None or ndim == 1 or name.endswith(EMBEDDING):
        return Multipliers()
    wider = config.model.hidden_size / config.width_transfer.base_hidden_size
    std = 1 / wider if name.endswith(OUTPUT) else 1 / math.sqrt(wider)
    return Multipliers(init_std=std, learning_rate=1 / wider, weight_decay=wider)
