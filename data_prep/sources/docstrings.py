"""Docstrings out of Python source, by the syntax tree: nothing is imported or run.

`strip_docstrings` keeps everything else of the file, comments and layout included, and proves by the syntax tree that
only docstrings went. `extract_docstrings` gives the same strings as prose.
"""

from __future__ import annotations

import ast
import gc
import inspect
import io
import tokenize
import warnings

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def decode_source(content: bytes) -> str:
    """Python source as text, by its coding line (PEP 263), with line ends as '\\n'.

    Raises SyntaxError or UnicodeDecodeError for what is not Python source.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return io.TextIOWrapper(io.BytesIO(content), encoding, newline=None).read()


def parse(source: str) -> ast.Module:
    """The syntax tree; raises SyntaxError (also for NUL bytes and for nesting that is too deep)."""
    collecting = gc.isenabled()
    gc.disable()  # a tree is some hundred thousand young objects, none of them garbage: half the time goes there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from None
    finally:
        if collecting:
            gc.enable()


def _is_string(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def extract_docstrings(tree: ast.Module) -> list[str]:
    """Cleaned docstrings (`inspect.cleandoc`) of module, classes and functions in the order of the file, none twice."""
    documented = [node for node in ast.walk(tree) if isinstance(node, _Documented) and node.body and _is_string(node.body[0])]
    documented.sort(key=lambda node: node.body[0].lineno)
    texts = [inspect.cleandoc(node.body[0].value.value).strip() for node in documented]  # type: ignore[attr-defined]
    return [text for text in dict.fromkeys(texts) if text]


def strip_docstrings(source: str) -> str:
    """`source` without its docstrings and other statements that are only a string (attribute docstrings).

    A body that would be empty gets `pass`. Raises SyntaxError when the source does not parse, ValueError when the
    result would mean something else than the source without these statements (then the file is left out).
    """
    tree = parse(source)
    lines: list[bytes | None] = [line.encode("utf-8") for line in source.split("\n")]
    removals: list[tuple[ast.stmt, bytes]] = []
    for body in _all_bodies(tree):
        strings = [statement for statement in body if _is_string(statement)]
        for number, statement in enumerate(strings):
            empties = len(strings) == len(body) and number == 0
            removals.append((statement, b"pass" if empties else b""))
    for statement, replacement in sorted(removals, key=lambda item: (item[0].lineno, item[0].col_offset), reverse=True):
        _remove(lines, statement, replacement)
    result = b"\n".join(line for line in lines if line is not None).decode("utf-8")
    if ast.dump(parse(result)) != ast.dump(_without_strings(tree)):
        raise ValueError("stripping the docstrings would change the program")
    return result


def _all_bodies(tree: ast.Module) -> list[list[ast.stmt]]:
    """Every list of statements of the tree."""
    found = []
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body:
                found.append(body)
    return found


def _without_strings(tree: ast.Module) -> ast.Module:
    for body in _all_bodies(tree):
        body[:] = [statement for statement in body if not _is_string(statement)] or [ast.Pass()]
    return tree


def _remove(lines: list[bytes | None], statement: ast.stmt, replacement: bytes) -> None:
    """Cut one statement out of `lines` (UTF-8; a line that goes becomes None)."""
    assert statement.end_lineno is not None
    assert statement.end_col_offset is not None
    first, last = statement.lineno - 1, statement.end_lineno - 1
    opening, closing = lines[first], lines[last]
    assert opening is not None
    assert closing is not None
    before, after = opening[: statement.col_offset], closing[statement.end_col_offset :]
    if not replacement:
        # `"text"; x = 1` keeps x = 1 in its place; `x = 1; "text"` loses its semicolon
        rest = after.lstrip()
        if rest.startswith(b";"):
            after = rest[1:].lstrip()
        elif before.rstrip().endswith(b";"):
            before = before.rstrip()[:-1]
    line = before + replacement + after
    for number in range(first, last + 1):
        lines[number] = None
    if line.strip():
        lines[first] = line.rstrip() if not after.strip() else line
