"""Exact and near duplicates of any number of documents, in bounded memory: docs/decisions/081-near-duplicates.md."""

from data_prep.dedup.decide import EXACT, KEEP, NEAR, decide
from data_prep.dedup.external_sort import ExternalSort
from data_prep.dedup.signature import ShingleSet, Signer, jaccard, shingle_set

__all__ = ["EXACT", "KEEP", "NEAR", "ExternalSort", "ShingleSet", "Signer", "decide", "jaccard", "shingle_set"]
