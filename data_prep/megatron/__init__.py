"""Megatron-LM's tokenised corpora (.bin and .idx) ↔ shards; without torch."""

from data_prep.megatron.corpus import INDEX_NAME, Written, from_megatron, original_index, to_megatron
from data_prep.megatron.index import MegatronIndex, token_dtype

__all__ = ["INDEX_NAME", "MegatronIndex", "Written", "from_megatron", "original_index", "to_megatron", "token_dtype"]
