"""Pieces of a benchmark's code that tell an item by themselves, so that it is found without its question or with other names.

- a text of code as it is, without its comments, and as Python writes its syntax tree (no docstrings, no needless brackets);
- a prompt with the solution that stands in another text of the item, and each of its functions;
- tests: each line that asserts, all such lines; the examples of a docstring;
- sentences of docstrings, which runs of words across names do not find once the names are changed.

Names that an author chose although they are keywords or built-in names elsewhere (`string`, `count`) are also taken as names.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence

from data_prep.code_words import KEPT_NAMES

_CODE = re.compile(r"(?m)^\s*(?:(?:async )?def \w+\s*\(|class \w+|assert\b|return\b|>>> |import \w|from \S+ import\b|#include)|[;{}]\s*$")
_LINE_COMMENT = re.compile(r"(?m)[ \t]*(?:#|//)[^\n]*$")
_ASSERT = re.compile(r"(?m)^[ \t]*assert\b[^\n]*(?:\n(?=[ \t]*[)\]}])[^\n]*)*")
_EXAMPLES = re.compile(r"(?m)(?:^[ \t]*>>> [^\n]*\n?(?:^(?![ \t]*(?:\"\"\"|'''|$))[^\n]*\n?)*(?:^[ \t]*\n(?=[ \t]*>>> ))?)+")
_STRING = re.compile(r"(?:\"\"\"|''')(.*?)(?:\"\"\"|'''|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*(?=>>>|[-*•])|>>>[^\n]*")
_WORD = re.compile(r"[^\W\d]\w*")
_KEPT = frozenset(KEPT_NAMES)
_MOST_CHARACTERS = 20_000


def is_code(text: str) -> bool:
    """Whether a text of a benchmark holds lines of code."""
    return len(text) <= _MOST_CHARACTERS and _CODE.search(text) is not None


def code_pieces(texts: Sequence[str]) -> Iterator[str]:
    """Of an item's texts that are code: what else of them is looked for whole."""
    chosen = [text.replace("\r", "") for text in texts if is_code(text)]
    for place, text in enumerate(chosen):
        yield text
        yield _LINE_COMMENT.sub("", text)
        asserts = _ASSERT.findall(text)
        yield from asserts
        yield "\n".join(asserts)
        yield from _EXAMPLES.findall(text)
        trees = [_tree(text), _tree("def _():\n" + text)]
        if "def " in text:
            trees += [_tree(text + other) for other in chosen[place + 1 :] if other[:1].isspace()]
        for tree in trees:
            yield from _of_tree(tree) if tree is not None else ()
    asserts = [line for text in chosen for line in _ASSERT.findall(text)]
    yield "\n".join(asserts)


def with_names(piece: str) -> str:
    """The same with those of its names changed that could be kept names of some language, where it is Python."""
    tree = _tree(piece) or _tree(piece.rstrip() + "\n    pass\n") or _tree("def _():\n" + piece)
    names = _own_names(tree) & _KEPT if tree is not None else frozenset()
    return _WORD.sub(lambda match: match[0] + "_" if match[0] in names else match[0], piece) if names else piece


def docstring_sentences(text: str) -> Iterator[str]:
    """The sentences of the docstrings in a text of code."""
    if is_code(text):
        for match in _STRING.finditer(text):
            yield from (sentence for sentence in _SENTENCE_END.split(match[1]) if sentence.strip())


def _tree(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _of_tree(tree: ast.Module) -> Iterator[str]:
    """A module, and each of its functions and their bodies, without docstrings as Python writes them."""
    try:
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body and _is_string(body[0]):
                node.body = body[1:] or [ast.Pass()]
        yield ast.unparse(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.unparse(node) if node.name != "_" else ""
                yield "\n".join(map(ast.unparse, node.body))
    except RecursionError:
        return


def _is_string(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _own_names(tree: ast.Module) -> frozenset[str]:
    """Names that are given a value."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return frozenset(names)
