"""Segments by modality: what of a file is comment, docstring, signature, body or other code (`data_prep.syntax.spans`)."""

from __future__ import annotations

from dataclasses import replace

from data_prep.documents import Document, Tally
from data_prep.syntax import find_spans, grammar_of, parse, tiles
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import MODALITY_KINDS


class Segmenter:
    """The step `segments`."""

    name = "segments"

    def __init__(self, settings: bool, spec: SourceSpec) -> None:
        self._default = MODALITY_KINDS[spec.modality]

    def apply(self, document: Document, tally: Tally) -> Document:
        """The document with its segments.

        It stays as it is where it has some already (a pair), its language has no grammar, or its text is not in its language.
        """
        if document.segments is not None:
            return document
        grammar = grammar_of(document.language, document.path)
        source = document.text.encode("utf-8")
        tree = parse(source, grammar) if grammar else None
        if tree is None:
            tally.changed[self.name, "too large or not in its language" if grammar else "language without grammar"] += 1
            return document
        tally.changed[self.name, "segmented"] += 1
        segments = tiles(find_spans(tree), source)
        if all(kind == self._default for _, kind in segments):
            return document
        return replace(document, segments=segments)
