"""Engines: a model in training behind a small interface."""

from megatron_codemix.engine.factory import build_engine
from megatron_codemix.engine.inference import load_model
from megatron_codemix.engine.interface import Accept, Engine, StepResult, TokenBatch
from megatron_codemix.engine.megatron import MegatronEngine

__all__ = ["Accept", "Engine", "MegatronEngine", "StepResult", "TokenBatch", "build_engine", "load_model"]
