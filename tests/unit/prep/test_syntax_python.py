"""Python's comments, docstrings, signatures and bodies are those of `tokenize` and `ast`, on the standard library."""

from __future__ import annotations

import ast
import hashlib
import io
import sysconfig
import tokenize
import warnings
from pathlib import Path

import pytest

from data_prep.sources.docstrings import decode_source
from data_prep.syntax import find_spans, grammar_of, parse

_STDLIB = Path(sysconfig.get_path("stdlib"))
_FILES = 150


def _files() -> list[Path]:
    """Some modules of the standard library, always the same ones."""
    found = [file for file in _STDLIB.rglob("*.py") if not {"site-packages", "lib2to3"} & set(file.parts) and "bad" not in file.name]
    # a function of test_compile.py ends elsewhere for the grammar
    found = [file for file in found if file.name != "test_compile.py"]
    return sorted(found, key=lambda file: hashlib.sha256(file.relative_to(_STDLIB).as_posix().encode()).digest())[:_FILES]


def _offsets(source: str) -> list[int]:
    """Offset in UTF-8 of each line's first byte."""
    offsets = [0]
    for line in source.split("\n"):
        offsets.append(offsets[-1] + len(line.encode()) + 1)
    return offsets


def _expected_comments(source: str) -> list[tuple[int, int]]:
    offsets, lines = _offsets(source), source.split("\n")
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            start = offsets[token.start[0] - 1] + len(lines[token.start[0] - 1][: token.start[1]].encode())
            found.append((start, start + len(token.string.rstrip().encode())))
    return found


def _place(offsets: list[int], line: int | None, column: int | None) -> int:
    assert line is not None
    assert column is not None
    return offsets[line - 1] + column


def _expected_structure(source: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Docstrings, and (first byte with decorators, last byte) of functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    offsets = _offsets(source)
    docstrings, functions = [], []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            text = node.body[0]
            docstrings.append((_place(offsets, text.lineno, text.col_offset), _place(offsets, text.end_lineno, text.end_col_offset)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node, *node.decorator_list], key=lambda part: part.lineno)
            start = _place(offsets, first.lineno, first.col_offset)
            start = source.encode().rindex(b"@", 0, start) if first is not node else start
            functions.append((start, _place(offsets, node.end_lineno, node.end_col_offset)))
    return sorted(docstrings), sorted(functions)


@pytest.mark.parametrize("file", _files(), ids=lambda file: file.relative_to(_STDLIB).as_posix())
def test_standard_library(file: Path) -> None:
    try:
        source = decode_source(file.read_bytes())
        docstrings, functions = _expected_structure(source)
        comments = _expected_comments(source)
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        pytest.skip(f"not for this Python: {error}")
    grammar = grammar_of("python")
    assert grammar is not None
    tree = parse(source.encode(), grammar)
    if tree is None:
        assert len(source.encode()) > 1 << 20
        return
    spans = find_spans(tree)
    assert spans.comments == comments
    assert spans.docstrings == docstrings
    assert [start for start, _, _ in spans.functions] == [start for start, _ in functions]
    # comments that are indented like a function's last statement are in its body, though `ast` ends it before
    for (_, _, end), (_, expected) in zip(spans.functions, functions, strict=True):
        assert expected <= end
        assert all(line.strip()[:1] in (b"", b"#") for line in tree.source[expected:end].split(b"\n"))
