"""Moved to `tokenizer.symbols`; here until every import has followed."""

from megatron_codemix.tokenizer.symbols import *  # noqa: F403
