"""Exact and near duplicates of any number of documents, in bounded memory: docs/decisions/081-near-duplicates.md."""

from data_prep.dedup.external_sort import ExternalSort

__all__ = ["ExternalSort"]
