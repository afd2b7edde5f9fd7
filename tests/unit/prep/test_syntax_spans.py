"""Comments, docstrings, signatures and bodies in each language; segments tile any text."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Tally
from data_prep.steps.segments import Segmenter
from data_prep.syntax import MAX_BYTES, find_spans, grammar_of, parse, tiles
from megatron_codemix.config import SourceSpec
from megatron_codemix.shards import Kind

_LANGUAGES = ["python", "javascript", "typescript", "tsx", "java", "go", "rust", "c", "c++"]
_LETTERS = {Kind.CODE: ".", Kind.COMMENT: "#", Kind.DOCSTRING: "d", Kind.SIGNATURE: "s", Kind.BODY: "b"}

# Every text stands above a line that says of each of its characters what it is.
CASES: dict[str, list[tuple[str, str]]] = {
    "python": [
        ("#!/bin/sh", "#########"),
        ('"""M."""', "dddddddd"),
        ("x = 1  # c", ".......###"),
        ("# c", "###"),
        ("class A(B):", "..........."),
        ("    '''D.'''", "....dddddddd"),
        ("    @p", "....ss"),
        ("    async def f(self):  # why", "ssssssssssssssssssssssss#####"),
        ("        # c", "###########"),
        ("        r'D'", "bbbbbbbbdddd"),
        ("        def g(): return 'x'", "bbbbbbbbsssssssssbbbbbbbbbb"),
        ("        return g  # c", "bbbbbbbbbbbbbbbbbb###"),
        ("    y = 'no docstring'", "......................"),
        ("def h(a,  # c", "ssssssssss###"),
        ("      b): 'D'; f'no'", "ssssssssssdddbbbbbbb"),
        ("def k(): f'no'", "sssssssssbbbbb"),
        ("def m(): b'no'", "sssssssssbbbbb"),
    ],
    "javascript": [
        ("/** License, no docstring */", "############################"),
        ("import a from 'a'; // c", "...................####"),
        ("/** Doc. */", "ddddddddddd"),
        ("export async function f(a) { /* c */ return 1 }", "sssssssssssssssssssssssssssbb#######bbbbbbbbbbb"),
        ("const g = (x) => x * 2, n = 1;", "......sssssssssssbbbbb........"),
        ("const h = function () { };", "ssssssssssssssssssssssbbbb"),
        ("call(() => { return 1 })", "........................"),
        ("class A { /** Doc. */ m() { } /* c */ p = () => { } }", "..........ddddddddddd.ssssbbb.#######.ssssssssssbbb.."),
        ("module.exports.k = function () { }", "sssssssssssssssssssssssssssssssbbb"),
        ("const o = { a: function () { }, b() { } }", "............sssssssssssssssbbb..ssssbbb.."),
    ],
    "typescript": [
        ("/** Doc. */", "ddddddddddd"),
        ("interface A { /** Doc. */ a(x: number): void }", "..............ddddddddddd....................."),
        ("export const f = async (x: T): Promise<T> => { }", "sssssssssssssssssssssssssssssssssssssssssssssbbb"),
        ("class B { private m(): void { } q = (): T => { } }", "..........ssssssssssssssssssbbb.sssssssssssssbbb.."),
        ("function g(a: string): void", "..........................."),
    ],
    "tsx": [
        ("function A() { return <a>{/* c */}</a> }", "sssssssssssssbbbbbbbbbbbbb#######bbbbbbb"),
    ],
    "java": [
        ("/** License. */", "###############"),
        ("package a; // c", "...........####"),
        ("/** Doc. */", "ddddddddddd"),
        ("@A class B {", "............"),
        ("  /** Doc. */", "..ddddddddddd"),
        ("  @Override int f() throws E { /* c */ }", "..sssssssssssssssssssssssssssbb#######bb"),
        ("  B() { } abstract void g();", "..ssssbbb..................."),
        ("}", "."),
    ],
    "go": [
        ("// Package a is.", "dddddddddddddddd"),
        ("package a", "........."),
        ("", ""),
        ("// no docstring", "###############"),
        ("", ""),
        ("// F does", "ddddddddd"),
        ("// it.", "dddddd"),
        ("func (t *T) F(a int) (b int) { return } // c", "sssssssssssssssssssssssssssssbbbbbbbbbb.####"),
        ("//go:generate x", "###############"),
        ("var g = func() { }", ".................."),
    ],
    "rust": [
        ("//! Crate.", "dddddddddd"),
        ("// no", "#####"),
        ("/// Doc", "ddddddd"),
        ("/// two.", "dddddddd"),
        ("#[inline]", "sssssssss"),
        ("#[cfg(a)] #[must_use]", "sssssssssssssssssssss"),
        ("pub fn f<T>(x: T) -> T where T: A { /* c */ x }", "ssssssssssssssssssssssssssssssssssbb#######bbbb"),
        ("//// no", "#######"),
        ("trait B { fn g(); /** Doc. */ fn h() { } }", "..................ddddddddddd.sssssssbbb.."),
        ("#[derive(A)] struct C { #[a] d: [u8; 2] }", "........................................."),
        ("static E: [u8; 1] = [1]; fn i() { }", ".........................sssssssbbb"),
        ("impl C { #[a] fn j() { } }", ".........ssssssssssssbbb.."),
    ],
    "c": [
        ("/* license */", "#############"),
        ("#include <a.h> // c", "...............####"),
        ("/* Frees. */", "dddddddddddd"),
        ("static int *f(int a) { /* c */ return 0; }", "sssssssssssssssssssssbb#######bbbbbbbbbbbb"),
        ("int g(void);", "............"),
        ("/** Doc. */", "ddddddddddd"),
        ("struct s { int a; ///< Doc.", "..................ddddddddd"),
        ("#define A 1 // c", "............####"),
        ('#define B "//no" \'"\' 2 /* c */', ".......................#######"),
        ("#define C(a) a \\", "................"),
        ("  + 1 // c", "......####"),
        ("#define D // c", "..........####"),
        ("};", ".."),
    ],
    "c++": [
        ("/// Doc.", "dddddddd"),
        ("template <class T>", "ssssssssssssssssss"),
        ("T f(T a) { return a; }", "sssssssssbbbbbbbbbbbbb"),
        ("class A { A() : x(1) { } ~A() = default; };", "..........sssssssssssbbb..................."),
        ("auto l = [](int a) { return a; };", "................................."),
        ("#define A 1'0 // it's", "..............#######"),
        ("A::A() try { } catch (...) { }", "sssssssbbbbbbbbbbbbbbbbbbbbbbb"),
    ],
}


def _painted(text: str, language: str) -> str:
    source = text.encode()
    grammar = grammar_of(language)
    assert grammar is not None
    tree = parse(source, grammar)
    assert tree is not None
    segments = tiles(find_spans(tree), source)
    ends = [*(start for start, _ in segments[1:]), len(source)]
    painted = bytearray(len(source))
    for (start, kind), end in zip(segments, ends, strict=True):
        painted[start:end] = _LETTERS[kind].encode() * (end - start)
    return painted.decode()


@pytest.mark.parametrize("language", CASES)
def test_languages(language: str) -> None:
    text = "\n".join(line for line, _ in CASES[language])
    painted = _painted(text, language)
    place = 0
    for line, expected in CASES[language]:
        assert f"{line}\n{painted[place : place + len(line)]}" == f"{line}\n{expected}"
        place += len(line) + 1


def test_white_space_between_comments_belongs_to_them() -> None:
    assert _painted("x = 1\n# a\n\n  # b\ny = 2", "python") == "......" + "#" * 10 + "......"


def test_offsets_are_bytes() -> None:
    assert _painted("ü = 1 # ä", "python") == ".......####"


@pytest.mark.parametrize(
    ("language", "path", "expected"),
    [
        ("C++", None, "cpp"),
        ("TypeScript", "a/b.tsx", "tsx"),
        (None, "a/b.TSX", "tsx"),
        (None, "a/b.rs", "rust"),
        ("golang", "a/b.py", "go"),
        ("en", "a/b.py", None),
        (None, "README", None),
        (None, None, None),
    ],
)
def test_grammars(language: str | None, path: str | None, expected: str | None) -> None:
    grammar = grammar_of(language, path)
    assert (grammar and grammar.name) == expected


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.text(alphabet=st.sampled_from(list("ab(){}[]<>\"'#\\:;=/*!\n\r\t é\0")), max_size=200),
        st.sampled_from(["\n".join(line for line, _ in case) for case in CASES.values()]).flatmap(
            lambda text: st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(lambda cut: text[: cut[0]] + text[cut[1] :])
        ),
    ),
    st.sampled_from(_LANGUAGES),
)
def test_segments_tile_any_text(text: str, language: str) -> None:
    source = text.encode()
    document = Segmenter(True, SourceSpec(kind="stdlib", part="code", modality="code")).apply(
        Document("f", text, language=language), Tally()
    )
    assert document.text == text
    if document.segments is None:
        return
    starts = [start for start, _ in document.segments]
    assert starts[0] == 0
    assert all(before < after for before, after in pairwise(starts))
    assert starts[-1] < len(source)
    assert all(before != after for (_, before), (_, after) in pairwise(document.segments))


def test_what_is_not_segmented() -> None:
    step = Segmenter(True, SourceSpec(kind="stdlib", part="code", modality="code"))
    tally = Tally()
    for document in (
        Document("a", "prose", language="en"),
        Document("b", "x = 1\n" * (MAX_BYTES // 6 + 1), path="b.py"),
        Document("c", "(" * 100_000, path="c.py"),
        Document("d", "# c", path="d.py", segments=((0, Kind.BODY),)),
        Document("e", "", path="e.py"),
        Document("f", "x = 1\n", path="f.py"),
    ):
        assert step.apply(document, tally) is document
    assert dict(tally.changed) == {
        ("segments", "language without grammar"): 1,
        ("segments", "too large or not in its language"): 2,
        ("segments", "segmented"): 2,
    }


def test_a_text_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = grammar_of("java")
    assert grammar is not None
    assert parse(b"a<" * 20_000, grammar) is None
    many = b"class A { }\n" * 20_000
    assert parse(many, grammar) is not None
    monkeypatch.setattr(import_module("data_prep.syntax.parse"), "_MOST_SECONDS", -1.0)
    assert parse(many, grammar) is None
    after = parse(b"class A { }", grammar)
    assert after is not None
    assert not after.root.has_error


def test_text_of_a_text_source_that_is_code() -> None:
    step = Segmenter(True, SourceSpec(kind="stdlib", part="text", modality="text"))
    assert step.apply(Document("f", "x = 1\n", path="f.py"), Tally()).segments == ((0, Kind.CODE),)
