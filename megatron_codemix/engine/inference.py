"""The model of a checkpoint alone: no gradient buffers, no optimizer, a quarter of the memory of an engine."""

from __future__ import annotations

from pathlib import Path

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import weights
from megatron_codemix.model import LanguageModel, build_model
from megatron_codemix.parallel import Topology


def load_model(config: RunConfig, vocab_size: int, topology: Topology, folder: Path) -> LanguageModel:
    """This rank's part of the model whose weights `Engine.save_weights` wrote into `folder`, for forward passes. Collective.

    The weights are cast to `config.precision`; the layout may be another than the one they were saved from.
    Raises UserError for a checkpoint of another model.
    """
    model = build_model(config, vocab_size)
    loaded = weights.load({"model": model.sharded_state_dict(metadata={"dp_cp_group": topology.data_and_context.group})}, folder)
    model.load_state_dict(loaded["model"])
    return model.requires_grad_(False).eval()
