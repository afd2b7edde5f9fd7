"""Functions with their docstrings, each taken out of its file: what (docstring, function) pairs are made of."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from bisect import bisect_left
from dataclasses import dataclass

from data_prep.syntax.parse import Tree
from data_prep.syntax.spans import FunctionSpan, Range, Spans, find_spans

_MARK = re.compile(r"^[ \t]*(?:/\*[*!]+<?|//[/!]<?|//|/\*|\*+/|\*(?!/)|)[ \t]?")
_BLOCK_END = re.compile(r"[ \t]*\*+/[ \t]*$")
_GO_DIRECTIVE = re.compile(r"//(?:[a-z0-9]+:[a-z0-9]|nolint)")
_BETWEEN = re.compile(rb"(?:\s|#!?\[[^\n]*\])*+")


@dataclass(frozen=True, slots=True)
class Function:
    """A documented function of a file."""

    start: int
    """First byte of its signature, decorators included, in the file."""
    body_start: int
    """First byte behind the signature."""
    end: int
    docstring_range: Range
    """Where its docstring stands: inside of it (Python), or before `start`."""
    docstring: str
    """Its text without quotes, comment marks and indentation."""


def find_functions(tree: Tree, spans: Spans | None = None) -> list[Function]:
    """The functions of a file that have a docstring and parse without error, in the order of the text.

    A function inside of another is one of its own, and part of the outer one's body.
    """
    spans = spans or find_spans(tree)
    found = []
    for function in spans.functions:
        place = _docstring_of(tree, function, spans.docstrings)
        if place is None or _is_broken(tree, function):
            continue
        text = _clean(tree.grammar.name, tree.source[place[0] : place[1]].decode("utf-8"))
        if text:
            found.append(Function(*function, place, text))
    return found


def _docstring_of(tree: Tree, function: FunctionSpan, docstrings: list[Range]) -> Range | None:
    if tree.grammar.name == "python":
        place = bisect_left(docstrings, (function.body_start, 0))
        if place == len(docstrings) or docstrings[place][1] > function.end:
            return None
        # comments may stand between the signature and the docstring
        return None if _has_code(tree.source[function.body_start : docstrings[place][0]]) else docstrings[place]
    place = bisect_left(docstrings, (function.start, 0)) - 1
    if place < 0:
        return None
    gap = _BETWEEN.fullmatch(tree.source, docstrings[place][1], function.start)
    return docstrings[place] if gap is not None else None


def _has_code(source: bytes) -> bool:
    return any(line.strip() and not line.lstrip().startswith(b"#") for line in source.splitlines())


def _is_broken(tree: Tree, function: FunctionSpan) -> bool:
    node = tree.root.descendant_for_byte_range(function.start, function.end)
    return node is None or node.has_error


def _clean(grammar: str, text: str) -> str:
    if grammar == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                value = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return ""
        return inspect.cleandoc(value).strip() if isinstance(value, str) else ""
    lines = [line for line in text.splitlines() if not _GO_DIRECTIVE.match(line)]
    if text.startswith("/*"):
        lines = [_BLOCK_END.sub("", line) for line in lines]
    return inspect.cleandoc("\n".join(_MARK.sub("", line, count=1).rstrip() for line in lines)).strip()
