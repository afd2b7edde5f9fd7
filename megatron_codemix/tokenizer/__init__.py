"""Text ↔ ids, losslessly."""

from megatron_codemix.tokenizer.core import CONTROL, MODEL_NAME, NORMAL, UNKNOWN_TYPE, USER_DEFINED, EngineMismatch, Tokenizer

__all__ = ["CONTROL", "MODEL_NAME", "NORMAL", "UNKNOWN_TYPE", "USER_DEFINED", "EngineMismatch", "Tokenizer"]
