"""Controls: scrambled identifiers, comments alone, no comments, placebo."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import keyword
import os
import sysconfig
import tokenize
import warnings
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Drop, Tally
from data_prep.sources.docstrings import decode_source
from data_prep.steps.control import Control, What
from data_prep.syntax import find_spans, grammar_of, parse
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import Kind

_SPEC = SourceSpec(kind="stdlib", part="code", modality="code")
_STDLIB = Path(sysconfig.get_path("stdlib"))


def _control(what: What, text: str, language: str = "python", seed: int = 0, name: str = "f") -> Document:
    result = Control(what, _SPEC, seed=seed).apply(Document(name, text, language=language), Tally())
    assert isinstance(result, Document), result
    return result


def _modules(number: int) -> list[str]:
    """Sources of some modules of the standard library, always the same ones."""
    found = [file for file in _STDLIB.rglob("*.py") if not {"site-packages", "lib2to3", "test", "tests"} & set(file.parts)]
    found.sort(key=lambda file: hashlib.sha256(file.relative_to(_STDLIB).as_posix().encode()).digest())
    return [decode_source(file.read_bytes()) for file in found[:number]]


def _tokens(source: str) -> list[tuple[int, str]]:
    return [(token.type, token.string) for token in tokenize.generate_tokens(io.StringIO(source).readline)]


def test_scrambled_identifiers_are_one_for_one() -> None:
    for source in _modules(20):
        scrambled = _control("scramble_identifiers", source).text
        ast.parse(scrambled)
        there: dict[str, str] = {}
        back: dict[str, str] = {}
        for (kind, old), (new_kind, new) in zip(_tokens(source), _tokens(scrambled), strict=True):
            assert kind == new_kind
            if kind == tokenize.NAME and not keyword.iskeyword(old) and not keyword.issoftkeyword(old):
                assert there.setdefault(old, new) == new
                assert back.setdefault(new, old) == old
            elif kind not in (tokenize.NAME, tokenize.STRING):  # formatted strings hold names
                assert old == new
        long = [name for name in there if len(name) > 3 and not name.startswith("_")]
        assert all(there[name] != name for name in long)


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("python", "class Node_2(Base): total = print(f'{total} left')  # the Sum", ["class", "left", "# the Sum", "f'{"]),
        ("javascript", "const { a, b: c } = this.x; lbl: for (;;) { break lbl; }", ["const", "this", "break"]),
        ("typescript", "interface Shape<T> { area(scale: number): T }", ["interface", "number"]),
        ("java", "class A extends Base { int total; void m() throws IOException {} }", ["class", "extends", "int", "void"]),
        ("go", "package p\nfunc (t *Tree) Walk(n int) {}", ["package", "func"]),
        ("rust", 'impl Tree { fn walk(&self) -> Self { println!("{}", value); Self { value } } }', ["impl", "&self", "Self"]),
        ("c", "#define TWICE(value) ((value) + helper)\nint helper = sizeof(struct node);", ["#define", "int", "sizeof(struct"]),
        ("c++", "namespace ns { template <class T> T Max(T left) { return std::move(left); } }", ["namespace", "template <class"]),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 11 else "",
)
def test_scrambled_languages(language: str, text: str, kept: list[str]) -> None:
    scrambled = _control("scramble_identifiers", text, language).text
    assert len(scrambled) == len(text)
    assert scrambled != text
    assert all(word in scrambled for word in kept)
    for word in ("total", "Base", "scale", "Tree", "value", "helper", "left)", "area"):
        assert word not in scrambled
    # upper stays upper, lower lower: what is exported in Go stays so
    assert [character.isupper() for character in scrambled] == [character.isupper() for character in text]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("go", "package p\n\nfunc f() {\n\ta := make([]T, 10)\n\tb := new([]T)\n\tc := make(map[string]int)\n\td := []byte(a)\n}\n"),
        ("rust", "impl A { fn f(&self) -> Self { let union = Self::g(); Self { union } } fn r#async(r#type: u8) { r#type; } }"),
        ("java", "class A { void f() { var x = 1; record(x); } int type; }"),
        ("typescript", "let type: number; type = 1; type A = B; f(type as any); const of = 1; namespace N {}"),
        ("javascript", "let of = 1, async = 2, get = 3; for (const a of of) { static(get) }"),
        ("python", "type = 1\nprint(type(x))\nmatch = case = 2\nmatch x:\n    case _: pass\ntype X = int\n"),
        ("c", "int var, type = 1; struct type { int var; };"),
        ("c++", "auto type = final(1); struct A final : B { void f() override; }; std::vector<type> var;"),
    ],
)
def test_scrambled_text_has_no_more_errors(language: str, text: str) -> None:
    scrambled = _control("scramble_identifiers", text, language).text
    assert not _has_error(text, language), "the test's own text is broken"
    assert not _has_error(scrambled, language), scrambled
    for word in ("type =", "type(", " type;", "var =" if language == "c" else "var;"):
        assert word not in scrambled


def _has_error(text: str, language: str, path: str | None = None) -> bool:
    grammar = grammar_of(language, path)
    assert grammar is not None
    tree = parse(text.encode(), grammar)
    return tree is None or tree.root.has_error


@pytest.mark.slow
@pytest.mark.skipif("CODEMIX_DATA" not in os.environ, reason="CODEMIX_DATA names no folder with the corpora")
def test_scrambled_files_have_no_more_errors() -> None:
    """Every language: a file that parses still does."""
    broken, seen = [], Counter()
    with gzip.open(Path(os.environ["CODEMIX_DATA"]) / "corpus/code_multi.jsonl.gz") as lines:
        for line in islice(lines, 0, None, 3):
            row = json.loads(line)
            if grammar_of(row["lang"], row["path"]) is None or _has_error(row["text"], row["lang"], row["path"]):
                continue
            document = Document(row["path"], row["text"], language=row["lang"], path=row["path"])
            result = Control("scramble_identifiers", _SPEC, seed=0).apply(document, Tally())
            assert isinstance(result, Document)
            seen[row["lang"]] += 1
            if _has_error(result.text, row["lang"], row["path"]):
                broken.append(row["path"])
    assert len(seen) >= 6, seen
    assert not broken


def test_scrambled_names_are_keyed() -> None:
    text = "total = other + total\n"
    first = _control("scramble_identifiers", text).text
    assert first == _control("scramble_identifiers", text).text
    assert first != _control("scramble_identifiers", text, seed=1).text
    assert first != _control("scramble_identifiers", text, name="g").text


def test_more_short_names_than_there_are_letters() -> None:
    names = [chr(code) for code in (*range(ord("a"), ord("z") + 1), 0xE4, 0xF6)]
    scrambled = _control("scramble_identifiers", " = ".join(names) + " = 1").text.split(" = ")[:-1]
    assert len(set(scrambled)) == len(names)


def test_comments_only() -> None:
    control = _control("comments_only", '# one\n"""Mod."""  # two\ndef f():\n    """Doc\n    more."""\n    return 1\n')
    assert control.text == '# one\n"""Mod."""\n# two\n"""Doc\n    more."""\n'
    assert control.segments == ((0, Kind.COMMENT), (6, Kind.DOCSTRING), (17, Kind.COMMENT), (23, Kind.DOCSTRING))


def test_strip_comments_is_the_same_program() -> None:
    for source in _modules(40):
        if not source.strip():
            continue
        stripped = _control("strip_comments", source).text
        assert not any(kind == tokenize.COMMENT for kind, _ in _tokens(stripped))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ast.dump(ast.parse(stripped)) == ast.dump(_without_docstrings(ast.parse(source)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return tree


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("python", '#!/bin/sh\n"""M."""\nclass A:\n    """D."""\n\n    x = 1  # y\n', "class A:\n\n    x = 1\n"),
        ("python", 'class A:\n    """D."""\ndef f(): "D."; return 1\n', "class A:\n    pass\ndef f(): return 1\n"),
        ("c", "int/* a */x; // b\n/* c */ int y;\n/* d\n */\nint f(/* e\n */int z);\n", "int x;\n int y;\nint f(\nint z);\n"),
        ("java", "/** Doc. */\nclass A { // a\n  int b; /* c */ int d;\n}\n", "class A {\n  int b;   int d;\n}\n"),
        (
            "java",
            'class A {\n  String b = """\n    // text " /* no */\n    """; // c\n}\n',
            'class A {\n  String b = """\n    // text " /* no */\n    """;\n}\n',
        ),
        ("rust", "//! Crate.\n/// Doc.\nfn f() {}\n", "fn f() {}\n"),
        ("go", "// Package p.\npackage p // last\n", "package p\n"),
        ("c", '#define A 1 // b\n#define C "//" /* d */\nint e;\n', '#define A 1\n#define C "//"\nint e;\n'),
        ("javascript", "const a = '// no';\nreturn /* a\n */ 1; // b", "const a = '// no';\nreturn \n 1;"),
    ],
)
def test_strip_comments(language: str, text: str, expected: str) -> None:
    assert _control("strip_comments", text, language).text == expected


def test_placebo_keeps_words_and_white_space() -> None:
    text = "def f(x):\n    return x + 1\n\n\tü = f( 2 )\n"
    control = _control("placebo", text, "klingon")
    assert control.segments == ((0, Kind.CODE),)
    placebo = control.text
    assert placebo != text
    assert Counter(placebo.split()) == Counter(text.split())
    assert [len(line.split()) for line in placebo.split("\n")] == [len(line.split()) for line in text.split("\n")]
    assert placebo == _control("placebo", text, "klingon").text != _control("placebo", text, "klingon", seed=1).text


@pytest.mark.parametrize(
    ("what", "document", "reason"),
    [
        ("scramble_identifiers", Document("f", "prose", language="en"), "language without grammar"),
        ("strip_comments", Document("f", "(" * 20_000, path="f.py"), "too large or not in its language"),
        ("strip_comments", Document("f", "# a\n\n# b\n", path="f.py"), "nothing but comments"),
        ("comments_only", Document("f", "x = 1\n", path="f.py"), "no comment"),
    ],
)
def test_no_document_passes_as_it_was(what: What, document: Document, reason: str) -> None:
    tally = Tally()
    result = Control(what, _SPEC, seed=0).apply(document, tally)
    assert isinstance(result, Drop)
    assert result.reason == reason
    assert not tally.changed


@settings(max_examples=80, deadline=None)
@given(
    st.text(alphabet=st.sampled_from(list("ab_1(){}[]\"'#\\:;=/*\n\r\t é")), max_size=120),
    st.sampled_from(["python", "javascript", "java", "go", "rust", "c", "c++", "typescript"]),
    st.sampled_from(["scramble_identifiers", "comments_only", "strip_comments", "placebo"]),
)
def test_any_text(text: str, language: str, what: What) -> None:
    result = Control(what, _SPEC, seed=0).apply(Document("f", text, language=language), Tally())
    if isinstance(result, Drop):
        return
    if what == "placebo":
        assert sorted(result.text.split()) == sorted(text.split())
    if what == "comments_only":
        grammar = grammar_of(language)
        assert grammar is not None
        tree = parse(text.encode(), grammar)
        assert tree is not None
        spans = find_spans(tree)
        assert len(result.text.encode()) <= sum(end - start + 1 for start, end in spans.comments + spans.docstrings)
    if what == "strip_comments":
        assert len(result.text) <= len(text) + 4 * text.count("\n") + 4
