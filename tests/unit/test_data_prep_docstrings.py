"""Docstrings go, everything else of a source file stays."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from data_prep.sources.docstrings import decode_source, extract_docstrings, parse, strip_docstrings

CASES = {
    '"""Doc."""\nx = 1\n': "x = 1\n",
    '"""Doc."""': "pass",
    'def f():\n    """Doc."""\n': "def f():\n    pass\n",
    'def f(): "doc"\n': "def f(): pass\n",
    'def f():\n    """Doc\n\n    more\n    """\n    # why\n    return 1  # because\n': "def f():\n    # why\n    return 1  # because\n",
    '"""Doc."""; x = 1\n': "x = 1\n",
    'x = 1; "attribute"\n': "x = 1\n",
    'class A:\n    """A."""  # kept\n    b = 2\n    """B."""\n': "class A:\n      # kept\n    b = 2\n",
    "x = '''not a docstring'''\n": "x = '''not a docstring'''\n",
    '"é" "ü"\ny = "日本"\n': 'y = "日本"\n',
    'async def f():\n\t"""Tab."""\n\tawait g()\n': "async def f():\n\tawait g()\n",
    'if x:\n    "a"\n    "b"\nelse:\n    "c"\n': "if x:\n    pass\nelse:\n    pass\n",
}


@pytest.mark.parametrize("source", CASES)
def test_strip(source: str) -> None:
    assert strip_docstrings(source) == CASES[source]


def test_strip_refuses_what_is_no_python() -> None:
    for source in ("def f(:", "x = '\0'", "print 1"):
        with pytest.raises(SyntaxError):
            strip_docstrings(source)


def test_extract_in_order_cleaned_and_once() -> None:
    functions = 'def f(self):\n        "F."\n    def g(self):\n        "F."\n'
    source = f'"""Mod."""\nclass A:\n    """A.\n\n    deep\n      er\n    """\n    {functions}x = "no"\n'
    assert extract_docstrings(parse(source)) == ["Mod.", "A.\n\ndeep\n  er", "F."]


def test_coding_line_and_line_ends() -> None:
    assert decode_source("# -*- coding: latin-1 -*-\r\nx = 'é'\r\n".encode("latin-1")).endswith("x = 'é'\n")


def test_standard_library_modules() -> None:
    for name in ("ast.py", "json/decoder.py", "email/message.py", "dataclasses.py", "typing.py"):
        source = decode_source(Path(sysconfig.get_path("stdlib"), name).read_bytes())
        stripped = strip_docstrings(source)
        tree = ast.parse(stripped)
        assert not extract_docstrings(tree)
        assert extract_docstrings(parse(source))
        comments = [line for line in source.split("\n") if line.startswith("# ")]
        assert [line for line in stripped.split("\n") if line.startswith("# ")] == comments
