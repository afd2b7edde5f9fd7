"""Moved to `tokenizer.export`; here until every import has followed."""

from megatron_codemix.tokenizer.export import export_to_hf, prove_export

__all__ = ["export_to_hf", "prove_export"]
