"""Comments, docstrings, signatures and bodies of a file, and the segments that these make.

What a docstring is, each language's own tools say:

- Python: a string that is the first statement of a module, class or function, as `ast.get_docstring` finds it.
- JavaScript, TypeScript, Java: `/** … */` with what it describes behind it (not imports, another comment or the end).
- Rust: `///`, `//!`, `/** … */`, `/*! … */`.
- Go: comments that end on the line above a top-level declaration.
- C, C++: `/** … */`, `/*! … */`, `///`, `//!` with code behind them, `///<` and the like; and comments that end on the line
  above a function, with nothing but them on their lines, because most C is documented by these.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_prep.documents import Segment
from data_prep.syntax.keywords import LANGUAGES, Found, find_by_keywords
from data_prep.syntax.parse import Tree
from megatron_codemix.shards import Kind

Range = tuple[int, int]
"""First byte, and the one behind the last."""

_SPACE = re.compile(rb"\s*")
_NO_SUBJECT = re.compile(rb"import\b(?!\s*\()|package\b|#\s*(?:include|if|ifndef|pragma)|[\"']use strict|/[/*]|$")
_GO_SUBJECT = re.compile(rb"\r?\n(?:func|type|var|const|package)\b")
_GO_DIRECTIVE = re.compile(rb"//(?:[a-z0-9]+:[a-z0-9]|nolint|\s*\+build)")
_BLOCK_FORM = re.compile(rb"/\*\*(?![*/])")
_RUST_FORM = re.compile(rb"//!|///(?!/)|/\*!|/\*\*(?![*/])")
_C_FORM = re.compile(rb"//!|///(?!/)|/\*!|/\*\*(?![*/])")
_C_TRAILING = re.compile(rb"(?://[/!]|/\*[*!])<")
_MACRO_COMMENT = re.compile(rb"\"(?:\\.|[^\"\\])*\"|\b[0-9][\w']*|'(?:\\[^']{1,9}|\\'|[^'\\]{1,4})'|(//)", re.DOTALL)
"""In the text of a macro: strings, numbers ("1'000") and characters, in which no comment begins; and where one does."""
_NEXT_LINE = re.compile(rb"[ \t]*\r?\n[ \t]*")
_KINDS = list(Kind)


class FunctionSpan(NamedTuple):
    """A function that has a name and a body."""

    start: int
    """Of its signature, decorators and `export` included."""
    body_start: int
    """Where the signature ends: at the docstring (Python), the body, or a comment before it."""
    end: int


@dataclass(slots=True)
class Spans:
    """What was found in a file, each list in the order of the text."""

    comments: list[Range]
    """Docstrings that are comments are not among them."""
    docstrings: list[Range]
    """In languages whose docstrings are comments, a run of line comments is one."""
    functions: list[FunctionSpan]


def find_spans(tree: Tree) -> Spans:
    """Comments, docstrings and functions of a parsed file."""
    if tree.grammar.name in LANGUAGES:
        found = find_by_keywords(tree.grammar.name, tree.source, tree.root)
    else:
        found = _find_by_query(tree)
    comments, docstrings = found.comments, found.docstrings
    if tree.grammar.name != "python":
        comments, docstrings = _documentation(tree, comments, {start for start, _, _ in found.functions})
    functions = [
        FunctionSpan(start, _signature_end(tree.source, start, body, comments), end) for start, body, end in sorted(found.functions)
    ]
    return Spans(comments, sorted(docstrings), functions)


def _find_by_query(tree: Tree) -> Found:
    source, found = tree.source, Found()
    starts: dict[int, Range] = {}
    text_blocks = tree.grammar.name == "java" and b'"""' in source
    for _, match in tree.matches("structure"):
        if "comment" in match:
            node = match["comment"][0]
            # its grammar sees comments in text blocks of Java
            if text_blocks and node.parent is not None and "string" in node.parent.type:
                continue
            start, end = node.start_byte, node.end_byte
            found.comments.append((start, start + len(source[start:end].rstrip())))
        elif "macro" in match:
            _add_macro_comment(source, match["macro"][0].byte_range, found)
        else:
            function, body = match["function"][0], match["body"][0]
            key = body.start_byte
            # `export` and `template` match beside what they hold
            start, end = starts.get(key, (function.start_byte, 0))
            starts[key] = (min(start, function.start_byte), max(end, function.end_byte))
    found.comments.sort()
    found.functions = [(start, body, end) for body, (start, end) in starts.items()]
    return found


def _add_macro_comment(source: bytes, macro: Range, found: Found) -> None:
    """Count in the `//` comment that a macro ends with, which is part of its text to the grammar."""
    start, end = macro
    if source.find(b"//", start, end) < 0:
        return
    for match in _MACRO_COMMENT.finditer(source, start, end):
        if match[1]:
            found.comments.append((match.start(), match.start() + len(source[match.start() : end].rstrip())))
            return


def tiles(spans: Spans, source: bytes) -> tuple[Segment, ...]:
    """Segments that tile the text: what is in no span is code. Empty for an empty text.

    Nested functions are signature and body by themselves. White space between two comments belongs to them.
    """
    if not source:
        return ()
    paint = np.full(len(source), Kind.CODE, np.uint8)
    for start, body, end in spans.functions:  # outer ones first
        paint[start:body] = Kind.SIGNATURE
        paint[body:end] = Kind.BODY
    last = 0
    for start, end in spans.comments:
        paint[last if last and source[last:start].isspace() else start : end] = Kind.COMMENT
        last = end
    for start, end in spans.docstrings:
        paint[start:end] = Kind.DOCSTRING
    changes = np.flatnonzero(paint[1:] != paint[:-1]) + 1
    starts = [0, *changes.tolist()]
    kinds = paint[starts].tolist()
    return tuple((start, _KINDS[kind]) for start, kind in zip(starts, kinds))


def _signature_end(source: bytes, start: int, body: int, comments: list[Range]) -> int:
    """`body`, or the first of the comments that stand right before it."""
    end = body
    place = bisect_left(comments, (body, 0)) - 1
    while place >= 0 and comments[place][0] > start and not source[comments[place][1] : end].strip():
        end = comments[place][0]
        place -= 1
    return end


def _documentation(tree: Tree, comments: list[Range], functions: set[int]) -> tuple[list[Range], list[Range]]:
    """Comments that are none, and the runs of those that document something."""
    is_documentation = _RULES[tree.grammar.name]
    plain: list[Range] = []
    documentation: list[Range] = []
    for run in _runs(tree.source, comments):
        if is_documentation(tree.source, run, functions):
            documentation.append((run[0][0], run[-1][1]))
        else:
            plain += run
    return plain, documentation


def _runs(source: bytes, comments: list[Range]) -> Iterator[list[Range]]:
    """Line comments on consecutive lines, of one form ('//', '///', '//!'); a block comment alone."""
    run: list[Range] = []
    form = b""
    for start, end in comments:
        kind = source[start : start + 3]
        kind = kind if kind in (b"///", b"//!") else kind[:2]
        if run:
            gap = _NEXT_LINE.fullmatch(source, run[-1][1], start)
            if gap is None or kind != form or kind == b"/*":
                yield run
                run = []
        form = kind
        run.append((start, end))
    if run:
        yield run


def _is_block_documentation(source: bytes, run: list[Range], functions: set[int]) -> bool:
    return _BLOCK_FORM.match(source, run[0][0]) is not None and _has_subject(source, run[-1][1])


def _is_rust_documentation(source: bytes, run: list[Range], functions: set[int]) -> bool:
    return _RUST_FORM.match(source, run[0][0]) is not None


def _is_go_documentation(source: bytes, run: list[Range], functions: set[int]) -> bool:
    start, end = run[0][0], run[-1][1]
    if start and source[start - 1] != 0x0A:
        return False
    return _GO_SUBJECT.match(source, end) is not None and not all(_GO_DIRECTIVE.match(source, start) for start, _ in run)


def _is_c_documentation(source: bytes, run: list[Range], functions: set[int]) -> bool:
    start, end = run[0][0], run[-1][1]
    if _C_TRAILING.match(source, start):
        return True
    gap = _NEXT_LINE.match(source, end)
    if gap is not None and gap.end() in functions and not source[source.rfind(b"\n", 0, start) + 1 : start].strip():
        return True
    return _C_FORM.match(source, start) is not None and _has_subject(source, end)


def _has_subject(source: bytes, end: int) -> bool:
    space = _SPACE.match(source, end)
    assert space is not None
    return _NO_SUBJECT.match(source, space.end()) is None


_RULES = {
    **dict.fromkeys(("javascript", "typescript", "tsx", "java"), _is_block_documentation),
    **dict.fromkeys(("c", "cpp"), _is_c_documentation),
    "rust": _is_rust_documentation,
    "go": _is_go_documentation,
}
