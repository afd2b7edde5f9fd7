"""The model of a checkpoint alone: no gradient buffers, no optimizer, a quarter of the memory of an engine."""

from __future__ import annotations

from pathlib import Path

from megatron_codemix.config import RunConfig
from megatron_codemix.engine import state
from megatron_codemix.model import LanguageModel, build_model
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader


def load_model(config: RunConfig, vocab_size: int, topology: Topology, folder: Path) -> LanguageModel:
    """This rank's part of the model whose training state lies in `folder`, for forward passes. Collective.

    The master weights are cast to `config.precision`; the layout (without virtual stages) may be another than the one
    they were saved from. Raises UserError for a checkpoint of another model.
    """
    model = build_model(config, vocab_size)
    state.load(list(state.local_parameters([model], topology)), {}, PieceReader(folder), topology, moments=False)
    return model.requires_grad_(False).eval()
