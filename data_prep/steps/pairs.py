"""(docstring, function) pairs instead of files: Christopoulou et al. 2024, arXiv 2402.05783, for every language with a grammar.

Segments say what a pair's parts are, so that objectives need not look at ids: the docstring and the symbols up to and with that
of the language are DOCSTRING; the signature SIGNATURE; the body BODY, comments in it included, because modality is a property
of the segment there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from data_prep.documents import Document, Drop, Segment, Symbol, Tally
from data_prep.syntax import Function, Tree, find_functions, find_spans, grammar_of, parse
from data_prep.syntax.layout import laid_out
from data_prep.syntax.spans import Range
from megatron_codemix.config import SourceSpec
from megatron_codemix.config.prep_steps import Pairs
from megatron_codemix.shards import Kind

_BEGIN, _COMMENTS = "<|beginoftext|>", "<comments>"


class _Code(NamedTuple):
    """A function without its docstring."""

    source: bytes
    body_start: int
    verbatim: list[Range]
    comments: list[Range]


class PairMaker:
    """The step `pairs`: a file becomes a document for each of its documented functions."""

    name = "pairs"

    def __init__(self, settings: Pairs, spec: SourceSpec) -> None:
        self._settings = settings

    def apply(self, document: Document, tally: Tally) -> Drop | list[Document]:
        """The pairs of a file, in its order; their group is the file's, or the file itself.

        Counts functions that make no pair: 'docstring too short', 'no body', 'too long', 'repeated in the file'.
        """
        grammar = grammar_of(document.language, document.path)
        if grammar is None:
            return Drop("language without grammar", document.language or document.path or "")
        tree = parse(document.text.encode("utf-8"), grammar)
        if tree is None:
            return Drop("too large or not in its language")
        spans = find_spans(tree)
        functions = find_functions(tree, spans)
        if not functions:
            return Drop("no documented function")
        strings = _outermost([node.byte_range for node in tree.captures("verbatim", "text")])
        pairs: dict[tuple[str, tuple[Symbol, ...]], Document] = {}
        for function in functions:
            reason = None
            if len(function.docstring.split()) < self._settings.min_docstring_words:
                reason = "docstring too short"
            elif (code := _code(tree, function, strings, spans.comments)) is None:
                reason = "no body"
            else:
                pair = self._pair(document, tree, function, code)
                if len(pair.text.encode("utf-8")) > self._settings.max_bytes:
                    reason = "too long"
                elif (pair.text, pair.symbols) in pairs:
                    reason = "repeated in the file"
                else:
                    pairs[pair.text, pair.symbols] = pair
            if reason:
                tally.changed[self.name, reason] += 1
        return list(pairs.values()) or Drop("no function that makes a pair")

    def _pair(self, document: Document, tree: Tree, function: Function, code: _Code) -> Document:
        language = tree.grammar.symbol
        docstring = function.docstring.encode("utf-8")
        signature, body = self._layout(code, tree.grammar.name == "python")
        pair = _Pair()
        if self._settings.form == "docstring_first":
            pair.symbol(_COMMENTS, Kind.DOCSTRING)
            pair.text(docstring, Kind.DOCSTRING)
            pair.symbol(language, Kind.DOCSTRING)
            pair.pieces(signature, Kind.SIGNATURE)
        else:
            pair.symbol(_BEGIN, Kind.SIGNATURE)
            pair.pieces(signature, Kind.SIGNATURE)
            pair.symbol(_COMMENTS, Kind.DOCSTRING)
            pair.text(docstring, Kind.DOCSTRING)
            pair.symbol(language, Kind.DOCSTRING)
        pair.pieces(body, Kind.BODY)
        return Document(
            name=f"{document.name}:{function.start}",
            text=pair.source.decode("utf-8"),
            group=document.group if document.group is not None else f"file:{document.name}",
            language=document.language or ("typescript" if tree.grammar.name == "tsx" else tree.grammar.name),
            license=document.license,
            path=document.path,
            segments=tuple(pair.segments),
            symbols=tuple(pair.symbols),
        )

    def _layout(self, code: _Code, is_python: bool) -> tuple[list[bytes | str], list[bytes | str]]:
        """Signature and body, each as texts and symbols."""
        if self._settings.layout == "text":
            return [code.source[: code.body_start]], [code.source[code.body_start :]]
        verbatim = sorted({*code.verbatim, *code.comments})
        signature: list[bytes | str] = []
        body: list[bytes | str] = []
        place = 0
        for piece in laid_out(code.source, verbatim, code.comments, is_python):
            if isinstance(piece, str):
                (body if place >= code.body_start else signature).append(piece)
                continue
            start, end = piece
            if start < code.body_start:
                signature.append(code.source[start : min(end, code.body_start)])
            if end > code.body_start:
                body.append(code.source[max(start, code.body_start) : end])
            place = end
        return signature, body


class _Pair:
    """The parts of a pair, put one behind the other."""

    def __init__(self) -> None:
        self.source = b""
        self.segments: list[Segment] = []
        self.symbols: list[Symbol] = []

    def symbol(self, name: str, kind: Kind) -> None:
        self.symbols.append(Symbol(len(self.source), name, kind))

    def text(self, text: bytes, kind: Kind) -> None:
        if text and (not self.segments or self.segments[-1][1] != kind):
            self.segments.append((len(self.source), kind))
        self.source += text

    def pieces(self, pieces: Iterable[bytes | str], kind: Kind) -> None:
        for piece in pieces:
            if isinstance(piece, str):
                self.symbol(piece, kind)
            else:
                self.text(piece, kind)


def _code(tree: Tree, function: Function, strings: Sequence[Range], comments: Sequence[Range]) -> _Code | None:
    """The function as it would stand at the left margin; None where nothing but the docstring is in its body."""
    source = tree.source
    cut = _cut(source, function)
    inside = [
        found for found in _within(strings, function) if not source.startswith(_COMMENT_MARKS[tree.grammar.name == "python"], found[0])
    ]
    notes = _within(comments, function)
    rest = _Shortened(source, sorted([cut, *notes]), function.body_start, function.end).text
    if rest.strip(b" \t\r\n;{}") in (b"", b"pass", b"..."):
        return None
    code = _Shortened(source, sorted([cut, *_margins(source, function, inside, cut)]), function.start, function.end)
    text = code.text.rstrip()
    body_start = len(text[: code.place(function.body_start)].rstrip())
    return _Code(
        text, body_start, [code.range(found) for found in inside if found[0] < cut[0] or found[0] >= cut[1]], [*map(code.range, notes)]
    )


_COMMENT_MARKS = {True: (b"#",), False: (b"//", b"/*")}


def _cut(source: bytes, function: Function) -> Range:
    """What goes with the docstring: the white space before it, or the semicolon behind it."""
    start, end = function.docstring_range
    if end <= function.start:
        return function.start, function.start
    behind = source[end : function.end].lstrip(b" \t")
    if behind.startswith(b";"):
        return start, function.end - len(behind[1:].lstrip(b" \t"))
    return len(source[:start].rstrip()), end


def _margins(source: bytes, function: Function, strings: Sequence[Range], cut: Range) -> Iterator[Range]:
    """The function's own indentation in each of its lines but those that begin in a string."""
    line = source.rfind(b"\n", 0, function.start) + 1
    margin = source[line : function.start]
    margin = margin[: len(margin) - len(margin.lstrip())]
    while margin and (line := source.find(b"\n", line, function.end) + 1):
        string = bisect_left(strings, (line, 0)) - 1
        if line <= function.start or cut[0] <= line < cut[1] or (string >= 0 and line < strings[string][1]):
            continue
        common = next(
            (place for place, byte in enumerate(margin) if source[line + place : line + place + 1] != bytes((byte,))), len(margin)
        )
        if common:
            yield line, min(line + common, function.end)


def _outermost(ranges: Sequence[Range]) -> list[Range]:
    """Those that lie in no other one: formatted strings hold strings."""
    found: list[Range] = []
    for start, end in ranges:
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


def _within(ranges: Sequence[Range], function: Function) -> list[Range]:
    return [found for found in ranges[bisect_left(ranges, (function.start, 0)) :] if found[1] <= function.end]


class _Shortened:
    """source[start:end] without some ranges, which lie in it in order and apart; and where its places are then."""

    def __init__(self, source: bytes, removed: Sequence[Range], start: int, end: int) -> None:
        self._start = start
        self._removed = [(max(first, start), min(last, end)) for first, last in removed if last > start and first < end]
        pieces, place = [], start
        for first, last in self._removed:
            pieces.append(source[place : max(first, place)])
            place = max(last, place)
        self.text = b"".join((*pieces, source[place:end]))

    def place(self, offset: int) -> int:
        gone = sum(min(last, offset) - first for first, last in self._removed if first < offset)
        return offset - self._start - gone

    def range(self, found: Range) -> Range:
        return self.place(found[0]), self.place(found[1])
