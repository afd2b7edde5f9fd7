"""Operators whose implementation depends on the device, and the account of which one is used and why."""

from megatron_codemix.kernels.attention import causal_attention, document_attention
from megatron_codemix.kernels.context import gather_rows, take_rows, zigzag_chunks, zigzag_rows
from megatron_codemix.kernels.cross_entropy import vocab_parallel_cross_entropy
from megatron_codemix.kernels.documents import DocumentLayout, DocumentLayouts
from megatron_codemix.kernels.registry import Choice, choices, optional_packages

__all__ = [
    "Choice",
    "DocumentLayout",
    "DocumentLayouts",
    "causal_attention",
    "choices",
    "document_attention",
    "gather_rows",
    "optional_packages",
    "take_rows",
    "vocab_parallel_cross_entropy",
    "zigzag_chunks",
    "zigzag_rows",
]
