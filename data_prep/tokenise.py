"""Documents → token arrays with segments, in the shards' dtype; and the proof that the fast engine gives the reference's ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from data_prep.documents import Document
from megatron_codemix.errors import UserError
from megatron_codemix.shards import MODALITY_KINDS, Kind, Modality, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer

PROOF_CHARACTERS = 16 << 10
"""Compared at the beginning of a shard, and a quarter of it in each further batch."""


class Encoded(NamedTuple):
    """A document as the shards hold it."""

    tokens: np.ndarray
    """1-d, closed by the end-of-text id."""
    segments: list[tuple[int, Kind]] | None
    """(first token, kind), from 0; None: all of it is of the source's modality."""


class DocumentEncoder:
    """Encodes the documents of one source."""

    def __init__(self, source: str, tokenizer: Tokenizer, modality: Modality) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.dtype(token_dtype_for(tokenizer.vocab_size))
        self._source = source
        self._kind = MODALITY_KINDS[modality]

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """Tokens of each document, cut at its symbols, whose ids stand between the parts.

        Raises UserError for a symbol that the tokenizer does not have.
        """
        if not any(document.symbols or document.segments for document in documents):
            return [Encoded(self._closed([tokens]), None) for tokens in self.tokenizer.encode_batch([one.text for one in documents])]
        parts = [_parts(document) for document in documents]
        encoded = self.tokenizer.encode_batch([part for some in parts for part in some])
        ends = [0, *accumulate(map(len, parts))]
        return [self._assemble(document, encoded[start:end]) for document, start, end in zip(documents, ends[:-1], ends[1:], strict=True)]

    def _closed(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        tokens = np.empty(sum(array.size for array in arrays) + 1, self.dtype)
        place = 0
        for array in arrays:
            tokens[place : place + array.size] = array
            place += array.size
        tokens[-1] = self.tokenizer.end_of_text_id
        return tokens

    def _symbol(self, name: str) -> np.ndarray:
        number = self.tokenizer.special_ids.get(name)
        if number is None:
            raise UserError(
                f"sources.{self._source}.shape: needs the control symbol {name}, which the tokenizer does not have; "
                "train one with 'codemix prep tokenizer', or leave out the step"
            )
        return np.array([number], self.dtype)

    def _assemble(self, document: Document, parts: Sequence[np.ndarray]) -> Encoded:
        """parts: the tokens between symbols, one more than there are symbols."""
        arrays, places, place = [parts[0]], [], parts[0].size
        for symbol, part in zip(document.symbols, parts[1:], strict=True):
            arrays += (self._symbol(symbol.name), part)
            places.append(place)
            place += part.size + 1
        tokens = self._closed(arrays)
        kinds = self._kinds(document, tokens)
        kinds[places] = [int(symbol.kind) for symbol in document.symbols]
        starts = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist()]
        segments = [(start, Kind(int(kinds[start]))) for start in starts]
        return Encoded(tokens, None if segments == [(0, self._kind)] else segments)

    def _kinds(self, document: Document, tokens: np.ndarray) -> np.ndarray:
        """Kind of each token by the segment in which its first byte lies: uint8 (n,). End of text belongs to the last one."""
        if document.segments is None:
            return np.full(tokens.size, self._kind, np.uint8)
        sizes = self.tokenizer.token_num_bytes[tokens]
        first_bytes = np.cumsum(sizes) - sizes
        starts = np.array([start for start, _ in document.segments], np.int64)
        kinds = np.array([int(kind) for _, kind in document.segments], np.uint8)
        return kinds[np.searchsorted(starts, first_bytes, "right") - 1]


def _parts(document: Document) -> list[str]:
    """The text between symbols: one part more than there are symbols."""
    if not document.symbols:
        return [document.text]
    encoded = document.text.encode("utf-8")
    ends = [0, *(symbol.offset for symbol in document.symbols), len(encoded)]
    return [encoded[start:end].decode("utf-8") for start, end in pairwise(ends)]


def prove(tokenizer: Tokenizer, texts: Sequence[str], characters: int) -> None:
    """Compare the engines on texts drawn by their length (as good as chance), until `characters` are seen.

    Of a long text a part is compared: it is a text too, and a book would cost more than all the rest.
    Raises EngineMismatch.
    """
    seen = 0
    for text in sorted(texts, key=lambda text: (len(text) * 0x9E3779B1) & 0xFFFFFFFF):
        if seen >= characters:
            return
        sample = text[: characters - seen]
        seen += len(sample)
        tokenizer.prove_fast([sample])
