"""The engine that a config asks for; only its modules are imported."""

from __future__ import annotations

import importlib

from megatron_codemix.config import RunConfig
from megatron_codemix.engine.interface import Engine
from megatron_codemix.parallel import Topology

_ENGINES = {
    "megatron": ("megatron_codemix.engine.megatron", "MegatronEngine"),
    "deepspeed": ("megatron_codemix.engine.zero", "DeepSpeedEngine"),
}


def build_engine(config: RunConfig, vocab_size: int, topology: Topology) -> Engine:
    """A new model in training under the engine of `config`.

    vocab_size: entries of the tokenizer. The topology must have been joined with the run's layout. Raises UserError where the
    engine's library is missing.
    """
    module, name = _ENGINES[config.engine]
    return getattr(importlib.import_module(module), name)(config, vocab_size, topology)
