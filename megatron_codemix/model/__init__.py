"""The language model: megatron-core's GPTModel on our own layer spec, masked by document ids."""

from megatron_codemix.model.build import build_chunks, build_model, build_skeleton, transformer_config
from megatron_codemix.model.initialise import global_name, initialise
from megatron_codemix.model.language_model import LanguageModel
from megatron_codemix.model.spec import block_spec, layer_spec

__all__ = [
    "LanguageModel",
    "block_spec",
    "build_chunks",
    "build_model",
    "build_skeleton",
    "global_name",
    "initialise",
    "layer_spec",
    "transformer_config",
]
