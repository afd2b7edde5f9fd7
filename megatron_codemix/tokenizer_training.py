"""Moved to `tokenizer.training`; here until every import has followed."""

from megatron_codemix.tokenizer.training import train_tokenizer

__all__ = ["train_tokenizer"]
