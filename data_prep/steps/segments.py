"""Segments by modality: what of a file is comment, docstring, signature, body or other code (`data_prep.syntax.spans`).

Files joined into one document (`data_prep.repositories`) are each read in the language of their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data_prep.documents import Document, Segment, Tally
from data_prep.syntax import find_spans, grammar_of, parse, tiles
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import MODALITY_KINDS, Kind

_FILE = "<file_sep>"


class Segmenter:
    """The step `segments`. A document that has segments already (a pair) stays as it is."""

    name = "segments"

    def __init__(self, settings: bool, spec: SourceSpec) -> None:
        self._default = MODALITY_KINDS[spec.modality]

    def apply(self, document: Document, tally: Tally) -> Document:
        """The document with its segments; without, where its language has no grammar or its text is not in its language.

        Counts 'segmented', 'language without grammar', 'too large or not in its language'.
        """
        if document.segments is not None:
            return document
        found: list[Segment] = []
        for start, text, language, path in _files(document):
            found += [(start + offset, kind) for offset, kind in self._segment(text, language, path, tally)]
        if not found or all(kind == self._default for _, kind in found):
            return document
        return replace(document, segments=tuple(_merged(found)))

    def _segment(self, source: bytes, language: str | None, path: str | None, tally: Tally) -> tuple[Segment, ...]:
        grammar = grammar_of(language, path)
        tree = parse(source, grammar) if grammar else None
        if tree is None:
            tally.changed[self.name, "too large or not in its language" if grammar else "language without grammar"] += 1
            return ((0, self._default),) if source else ()
        tally.changed[self.name, "segmented"] += 1
        return tiles(find_spans(tree), source)


def _files(document: Document) -> Iterator[tuple[int, bytes, str | None, str | None]]:
    """(offset, UTF-8, language, path) of the files of a document."""
    source = document.text.encode("utf-8")
    bounds = [symbol.offset for symbol in document.symbols if symbol.name == _FILE]
    if not bounds:
        yield 0, source, document.language, document.path
        return
    if bounds[0]:
        yield 0, source[: bounds[0]], "name of the repository", None
    for start, end in zip(bounds, [*bounds[1:], len(source)]):
        line = source.find(b"\n", start, end) + 1 or end
        yield start, source[start:line], "path of the file", None
        yield line, source[line:end], None, source[start:line].decode("utf-8").strip()


def _merged(segments: list[Segment]) -> Iterator[Segment]:
    last: Kind | None = None
    for segment in segments:
        if segment[1] != last:
            yield segment
        last = segment[1]
