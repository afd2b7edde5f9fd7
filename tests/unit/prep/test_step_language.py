"""Languages: names, suffixes, and the step that keeps some of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import by_path, document_language, language_class, near_names, normalised
from data_prep.steps import prepare_steps
from data_prep.steps.language import LanguageFilter, NaturalLanguage
from megatron_codemix.config import LanguageStep, PrepConfig, SourceSpec
from megatron_codemix.errors import UserError

SPEC = SourceSpec(kind="stdlib", part="code", modality="code")
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und läuft dann durch den dunklen Wald davon."
ENGLISH = "The quick brown fox jumps over the lazy dog and then runs away through the dark forest."


def document(text="x", **fields):
    return Document("d", text, **fields)


def run(step, doc):
    tally = Tally()
    return LanguageFilter(step, SPEC).apply(doc, tally), tally


@pytest.mark.parametrize(
    "given_name, name, kind",
    [
        ("C++", "c++", "code"),
        ("cpp", "c++", "code"),
        ("C-Sharp", "c#", "code"),
        ("Jupyter-Notebook", "jupyter notebook", "adjacent"),
        ("reStructuredText", "restructuredtext", "markup"),
        ("HTML", "html", "markup"),
        ("YAML", "yaml", "data"),
        ("en-US", "en", "prose"),
        ("zh_Hant", "zh", "prose"),
        ("English", "en", "prose"),
        ("pl", "pl", "prose"),  # Polish, not Perl
        ("Dockerfile", "dockerfile", "code"),
        ("Brainfuck", "brainfuck", None),
        ("APL", "apl", None),  # three letters make no natural language
    ],
)
def test_names(given_name, name, kind):
    assert normalised(given_name) == name
    assert language_class(name) == kind


@pytest.mark.parametrize(
    "path, language",
    [
        ("src/a.PY", "python"),
        ("a.b/c.hpp", "c++"),
        ("x.h", "c"),
        ("index.d.ts", "typescript"),
        ("App.tsx", "tsx"),
        ("Makefile", "makefile"),
        ("deep/CMakeLists.txt", "cmake"),
        ("notes.txt", "text"),
        ("Dockerfile.arm", "dockerfile"),
        ("a/.gitignore", None),
        ("a/noend", None),
        ("", None),
    ],
)
def test_paths(path, language):
    assert by_path(path) == language


@given(strategies.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_name_and_path(text):
    assert normalised(normalised(text)) == normalised(text)
    found = by_path(text)
    assert found is None or language_class(found) is not None


def test_the_row_has_precedence_over_the_suffix():
    assert document_language(document(language="C++", path="a.py")) == "c++"
    assert document_language(document(path="a.py")) == "python"
    assert document_language(document()) is None


def test_allow_deny_and_the_name_that_stays():
    kept, _ = run(LanguageStep(allow=["CPP"]), document(language="C++"))
    assert kept.language == "c++"
    assert run(LanguageStep(allow=["python"]), document(language="C++"))[0] == Drop("language not wanted", "c++")
    assert run(LanguageStep(deny=["c++"]), document(path="a.cc"))[0] == Drop("language not wanted", "c++")


def test_classes_keep_markup_apart():
    page, code = document(path="a.html"), document(path="a.js")
    code_only, markup_only = LanguageStep(classes=["code"]), LanguageStep(classes=["markup"])
    assert run(code_only, page)[0] == Drop("class of language not wanted", "html: markup")
    assert run(markup_only, code)[0] == Drop("class of language not wanted", "javascript: code")
    assert run(code_only, code)[0].language == "javascript"
    assert run(markup_only, page)[0].language == "html"


def test_unknown_languages():
    assert run(LanguageStep(allow=["en"]), document())[0] == document()
    assert run(LanguageStep(allow=["en"], unknown="drop"), document())[0] == Drop("unknown language")
    odd = document(language="Brainfuck")
    assert run(LanguageStep(classes=["code"]), odd)[0].language == "brainfuck"
    assert run(LanguageStep(classes=["code"], unknown="drop"), odd)[0] == Drop("unknown class of language", "brainfuck")


def test_detection():
    step = LanguageStep(allow=["de"], detect=True, unknown="drop")
    kept, tally = run(step, document(GERMAN))
    assert kept.language == "de" and tally.changed["language", "detected"] == 1
    assert run(step, document(ENGLISH))[0] == Drop("language not wanted", "en")
    assert run(step, document("12345 \n\x00 ---"))[0].reason == "unknown language"
    assert run(step, document(GERMAN, path="brief.txt"))[0].language == "de"
    assert run(step, document("12345", path="zahlen.txt"))[0] == Drop("language not wanted", "text")
    # what the row says is not doubted
    assert run(step, document(ENGLISH, language="de"))[0].language == "de"


HEADERS = {
    "fields": "PEP: 670\nTitle: Convert macros\nAuthor: Erlend Aasland,\n        Viktor\nStatus: Final\nCreated: 19-Oct-2021\n\n",
    "list": "- Feature Name: `integer_atomics`\n- Start Date: 2016-03-14\n- RFC PR: [rust-lang/rfcs#1543](https://github.com/rust)\n\n",
    "front matter": "---\ntitle: std::iter::once\ntags: [a, b, xyz]\nurl: https://example.org/a/b\n---\n",
    "markup": "``numpy.dtypes``\n================\n.. currentmodule:: numpy\n.. autosummary::\n" * 6,
}


@pytest.mark.parametrize("header", HEADERS)
def test_what_stands_above_a_text_is_not_its_language(header):
    identifier = NaturalLanguage()
    assert identifier.of(HEADERS[header] + GERMAN * 4) == ("de", pytest.approx(1.0, abs=0.2))
    assert identifier.of(HEADERS[header])[0] is not None  # alone, it is what there is


def test_headers_without_end_take_linear_time():
    identifier = NaturalLanguage()
    for unit in ("A: b\n", "---\n", "- A:\n ", "A", " a\n", "`a", "<"):
        assert len(identifier.of(unit * 200_000)) == 2


def test_confidence_below_the_threshold_is_unknown():
    dropped, tally = run(LanguageStep(detect=True, unknown="drop", min_confidence=1.0), document("Hello"))
    assert dropped.reason == "unknown language" and "probability" in dropped.detail and not tally.changed


@given(strategies.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_detection_of_anything(text):
    step = LanguageFilter(LanguageStep(detect=True, unknown="drop"), SPEC)
    result = step.apply(document(text), Tally())
    assert isinstance(result, Drop) or result.text == text


@pytest.mark.parametrize("name, near", [("jva", ["java"]), ("Pyton", ["python"]), ("java-script", ["javascript"]), ("germn", ["de"])])
def test_a_misspelled_language_has_near_names(name, near):
    assert near_names(name)[: len(near)] == near


@pytest.mark.parametrize("name", ["python", "C++", "golang", "en-US", "yue", "rus", "Objective-J", "brainfuck", "apl", "stata"])
def test_other_names_have_none(name):
    assert near_names(name) == []


def _prep(tmp_path, language, **fields):
    rows = {"kind": "jsonl", "paths": ["x"], "modality": "code", "clean": {"language": language}, **fields}
    return PrepConfig.model_validate({"output": str(tmp_path), "sources": {"a": rows}})


def test_unknown_languages_are_refused_before_anything_is_read(tmp_path):
    wrong = {"allow": ["pyton", "c"], "deny": ["jva", "stata"]}
    with pytest.raises(UserError) as error:
        prepare_steps(_prep(tmp_path, wrong), tmp_path)
    assert [problem.partition(" is no language")[0] for problem in error.value.problems] == [
        "sources.a.clean.language.allow: 'pyton'",
        "sources.a.clean.language.deny: 'jva'",
        "sources.a.clean.language.deny: 'stata'",
    ]
    assert "did you mean 'java'?" in error.value.problems[1]


def test_rows_may_name_languages_of_their_own(tmp_path):
    prepare_steps(_prep(tmp_path, {"deny": ["stata", "en", "c++"]}, language_field="lang"), tmp_path)
    with pytest.raises(UserError, match="'jva'"):
        prepare_steps(_prep(tmp_path, {"deny": ["jva"]}, rows="the-stack"), tmp_path)
