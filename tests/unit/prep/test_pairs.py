"""(docstring, function) pairs: what is in them, in both forms and layouts, and that code laid out by symbols is the same code."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Drop, Tally
from data_prep.sources.docstrings import decode_source
from data_prep.steps.pairs import PairMaker
from megatron_codemix.config import SourceSpec
from megatron_codemix.config.prep_steps import Pairs
from megatron_codemix.shards import Kind

_SPEC = SourceSpec(kind="stdlib", part="code", modality="code")
_STDLIB = Path(sysconfig.get_path("stdlib"))


def _pairs(text: str, language: str = "python", **settings_: object) -> tuple[list[Document], Tally]:
    tally = Tally()
    result = PairMaker(Pairs(min_docstring_words=1, **settings_), _SPEC).apply(Document("f", text, group="repo", language=language), tally)  # type: ignore[arg-type]
    assert not isinstance(result, Drop), result
    return result, tally


def _written(document: Document) -> str:
    """Text and symbols in one line."""
    source, place, parts = document.text.encode(), 0, []
    for symbol in document.symbols:
        parts += [source[place : symbol.offset].decode(), symbol.name]
        place = symbol.offset
    return "".join((*parts, source[place:].decode()))


def _kinds(document: Document) -> list[tuple[str, Kind]]:
    assert document.segments is not None
    source = document.text.encode()
    starts = [start for start, _ in document.segments]
    return [(source[start:end].decode(), kind) for (start, kind), end in zip(document.segments, [*starts[1:], len(source)], strict=True)]


def _rendered(document: Document) -> str:
    """The code of a pair (behind the language's symbol), its layout symbols written out again."""
    behind = False
    out, place, level, source = "", 0, 0, document.text.encode()
    fresh = True
    for symbol in (*document.symbols, None):
        text = source[place : symbol.offset if symbol else len(source)].decode()
        if behind and text:
            out += ("    " * level if fresh else "") + text
            fresh = False
        if symbol is None:
            return out
        place = symbol.offset
        behind = behind or symbol.name == "<python>"
        if symbol.name == "<NEW_LINE>":
            out, fresh = out + "\n", True
        level += {"<INDENT>": 1, "<DEDENT>": -1}.get(symbol.name, 0)
    raise AssertionError


METHOD = '''
class Stack:
    @property
    def top(self):  # the last
        """The element
        on top."""
        if self.items:
            text = """a
  b"""
            # found
            return (text,
                    self.items[-1])

        return None
'''


def test_docstring_first_by_symbols() -> None:
    (pair,), _ = _pairs(METHOD)
    assert _written(pair) == (
        "<comments>The element\non top.<python>@property<NEW_LINE>def top(self):  # the last<NEW_LINE><INDENT>if self.items:<NEW_LINE>"
        '<INDENT>text = """a\n  b"""<NEW_LINE># found<NEW_LINE>return (text,<NEW_LINE>                self.items[-1])<NEW_LINE><NEW_LINE>'
        "<DEDENT>return None<DEDENT>"
    )
    assert [(symbol.name, symbol.kind) for symbol in pair.symbols[:2]] == [("<comments>", Kind.DOCSTRING), ("<python>", Kind.DOCSTRING)]
    assert [kind for _, kind in _kinds(pair)] == [Kind.DOCSTRING, Kind.SIGNATURE, Kind.BODY]
    assert (pair.group, pair.language) == ("repo", "python")


def test_docstring_first_as_text() -> None:
    (pair,), _ = _pairs(METHOD, layout="text")
    assert _kinds(pair) == [
        ("The element\non top.", Kind.DOCSTRING),
        ("@property\ndef top(self):", Kind.SIGNATURE),
        (
            '  # the last\n    if self.items:\n        text = """a\n  b"""\n        # found\n        return (text,\n'
            "                self.items[-1])\n\n    return None",
            Kind.BODY,
        ),
    ]


def test_signature_first() -> None:
    (pair,), _ = _pairs('def f(x):\n    "Say so."\n    return x\n', form="signature_first")
    assert _written(pair) == "<|beginoftext|>def f(x):<comments>Say so.<python><NEW_LINE><INDENT>return x<DEDENT>"
    assert _kinds(pair) == [("def f(x):", Kind.SIGNATURE), ("Say so.", Kind.DOCSTRING), ("return x", Kind.BODY)]
    assert [symbol.kind for symbol in pair.symbols] == [Kind.SIGNATURE, Kind.DOCSTRING, Kind.DOCSTRING, Kind.BODY, Kind.BODY, Kind.BODY]


def test_one_dedent_for_each_level_that_is_left() -> None:
    (pair,), _ = _pairs('def f():\n  "Doc."\n  for a in b:\n     if a:\n\t\tg()\n  h()\n')
    assert _written(pair).endswith("<INDENT>g()<NEW_LINE><DEDENT><DEDENT>h()<DEDENT>")


def test_docstring_on_the_line_of_its_function() -> None:
    (pair,), _ = _pairs('def f(): "Doc."; return 1\n', layout="text")
    assert _written(pair) == "<comments>Doc.<python>def f(): return 1"
    (pair,), _ = _pairs('def f():\n    "Doc."; x = 1\n    return x\n', layout="text")
    assert _written(pair) == "<comments>Doc.<python>def f():\n    x = 1\n    return x"


@pytest.mark.parametrize(
    ("language", "source", "expected"),
    [
        (
            "java",
            "class A {\n  /**\n   * Adds <b>one</b>.\n   *\n   * @param a a number\n   */\n  @Override\n"
            "  int add(int a) {\n    return a + 1;\n  }\n}\n",
            "<comments>Adds <b>one</b>.\n\n@param a a number<java>@Override\nint add(int a) {\n  return a + 1;\n}",
        ),
        (
            "javascript",
            "/** Twice. */\nexport const f = (x) => {\n\treturn 2 * x;\n};\n",
            "<comments>Twice.<javascript>export const f = (x) => {\n\treturn 2 * x;\n};",
        ),
        (
            "typescript",
            "/** Twice. */\nfunction f(x: number): number { return x; }",
            "<comments>Twice.<typescript>function f(x: number): number { return x; }",
        ),
        (
            "go",
            "package p\n\n// F does.\n// Twice.\n//go:noinline\nfunc F() int {\n\treturn 1\n}\n",
            "<comments>F does.\nTwice.<go>func F() int {\n\treturn 1\n}",
        ),
        (
            "rust",
            "impl T {\n    /// Gets `x`.\n    #[inline]\n    pub fn x(&self) -> u8 {\n        self.x\n    }\n}\n",
            "<comments>Gets `x`.<rust>#[inline]\npub fn x(&self) -> u8 {\n    self.x\n}",
        ),
        (
            "c",
            "/* Frees\n * it all. */\nvoid f(int *x)\n{\n\tfree(x); // done\n}\n",
            "<comments>Frees\nit all.<c>void f(int *x)\n{\n\tfree(x); // done\n}",
        ),
        (
            "c++",
            "/// Largest.\n/// Of two.\ntemplate <class T>\nT max(T a, T b) { return a < b ? b : a; }\n",
            "<comments>Largest.\nOf two.<cpp>template <class T>\nT max(T a, T b) { return a < b ? b : a; }",
        ),
    ],
    ids=lambda value: value if value.isidentifier() or value == "c++" else "",
)
def test_languages(language: str, source: str, expected: str) -> None:
    (pair,), _ = _pairs(source, language, layout="text")
    assert _written(pair) == expected


def test_symbols_in_a_language_with_braces() -> None:
    (pair,), _ = _pairs("/** Doc. */\nint f() {\n  /* a\n     b */\n  if (x)\n    y();\n}\n", "c")
    assert _written(pair) == (
        "<comments>Doc.<c>int f() {<NEW_LINE><INDENT>/* a\n     b */<NEW_LINE>if (x)<NEW_LINE><INDENT>y();<NEW_LINE><DEDENT><DEDENT>}"
    )


def test_what_makes_no_pair() -> None:
    text = 'def a():\n    "Doc."\n\ndef b():\n    "Too short."\n    return 1\n\n'
    text += 'def c():\n    "One two three."\n    return 1\n\ndef c():\n    "One two three."\n    return 1\n\n'
    text += 'def d():\n    "One two three."\n    return """' + "x" * 200 + '"""\n'
    tally = Tally()
    result = PairMaker(Pairs(max_bytes=150), _SPEC).apply(Document("f", text, path="f.py"), tally)
    assert isinstance(result, list)
    assert [pair.name for pair in result] == [f"f:{text.index('def c')}"]
    assert result[0].group == "file:f"
    assert {what: count for (_, what), count in tally.changed.items()} == {
        "docstring too short": 2,
        "repeated in the file": 1,
        "too long": 1,
    }
    assert _pairs('def a():\n    "Doc."\n\ndef b():\n    "Doc."\n    1\n')[1].changed == {("pairs", "no body"): 1}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("f", "x = 1\n", language="python"), "no documented function"),
        (Document("f", "def f():\n    'Doc.'\n", language="python"), "no function that makes a pair"),
        (Document("f", "prose", language="en"), "language without grammar"),
        (Document("f", "(" * 20_000, language="python"), "too large or not in its language"),
    ],
)
def test_files_without_pairs_are_dropped(document: Document, reason: str) -> None:
    result = PairMaker(Pairs(), _SPEC).apply(document, Tally())
    assert isinstance(result, Drop)
    assert result.reason == reason


def _sample() -> list[Path]:
    found = [file for file in _STDLIB.rglob("*.py") if not {"site-packages", "lib2to3", "test", "tests"} & set(file.parts)]
    return sorted(found, key=lambda file: hashlib.sha256(file.relative_to(_STDLIB).as_posix().encode()).digest())[:100]


def test_code_laid_out_by_symbols_is_the_same_code() -> None:
    """Each pair of the standard library, written out again, is its function without the docstring."""
    count = 0
    for file in _sample():
        source = decode_source(file.read_bytes())
        try:
            expected = _expected(source)
        except SyntaxError:
            continue
        result = PairMaker(Pairs(min_docstring_words=1, max_bytes=1 << 20), _SPEC).apply(Document("f", source, language="python"), Tally())
        for pair in result if isinstance(result, list) else []:
            docstring, tree = expected[int(pair.name[2:])]
            docstring_end = pair.symbols[1].offset
            assert pair.text.encode()[:docstring_end].decode() == docstring
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert ast.dump(ast.parse(_rendered(pair)).body[0]) == tree
            count += 1
    assert count > 200


def _expected(source: str) -> dict[int, tuple[str, str]]:
    """First byte of a function → (docstring, its tree without)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    starts = [0]
    for line in source.split("\n"):
        starts.append(starts[-1] + len(line.encode()) + 1)
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node, clean=False)) is not None:
            first = min([node, *node.decorator_list], key=lambda part: part.lineno)
            start = starts[first.lineno - 1] + first.col_offset
            start = source.encode().rindex(b"@", 0, start) if first is not node else start
            node.body = node.body[1:]
            found[start] = (inspect.cleandoc(docstring).strip(), ast.dump(node))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=st.sampled_from(list("ab(){}[]\"'#\\:;=/*\n\r\t é")), max_size=120),
    st.sampled_from(["python", "javascript", "java", "go", "rust", "c", "c++", "typescript"]),
    st.sampled_from(["symbols", "text"]),
)
def test_any_text(body: str, language: str, layout: str) -> None:
    head = {"python": "def f():\n    'Doc it well.'\n    ", "go": "// Doc it well.\nfunc f() {", "rust": "/// Doc it well.\nfn f() {"}
    text = head.get(language, "/** Doc it well. */\nint f() {") + body
    result = PairMaker(Pairs(min_docstring_words=1, layout=layout), _SPEC).apply(Document("f", text, language=language), Tally())  # type: ignore[arg-type]
    for pair in result if isinstance(result, list) else []:
        size = len(pair.text.encode())
        assert pair.segments is not None
        assert pair.segments[0][0] == 0
        assert all(0 <= symbol.offset <= size for symbol in pair.symbols)
        assert [symbol.offset for symbol in pair.symbols] == sorted(symbol.offset for symbol in pair.symbols)
        levels = [symbol.name for symbol in pair.symbols]
        assert levels.count("<INDENT>") == levels.count("<DEDENT>")
