"""Notebooks of every format become Markdown; what is broken is dropped under a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document, Drop, Tally
from data_prep.steps.render import Renderer
from megatron_codemix.config.prep import SourceSpec
from megatron_codemix.config.prep_steps import RenderStep

SPEC = SourceSpec(kind="jsonl", paths=[], modality="text")
V4 = {
    "nbformat": 4,
    "metadata": {"kernelspec": {"language": "Python"}},
    "cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {
            "cell_type": "code",
            "source": "print(1)\nplot()",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "iVBOR", "text/plain": "<Figure size 1x1>"}},
                {"output_type": "execute_result", "data": {"text/plain": ["[1,\n", " 2]"]}},
                {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": ["\x1b[31mlong"]},
            ],
        },
    ],
}
V4_TEXT = "# Title\nwords\n\n```python\nprint(1)\nplot()\n```\n\n```output\n1\n[1,\n 2]\nKeyError: 'x'\n```\n"
V3 = {
    "nbformat": 3,
    "metadata": {"name": "old"},
    "worksheets": [
        {
            "cells": [
                {"cell_type": "heading", "level": 2, "source": "Part"},
                {
                    "cell_type": "code",
                    "language": "ruby",
                    "input": ["puts 1"],
                    "outputs": [{"output_type": "pyout", "text": ["1"]}, {"output_type": "display_data", "png": "iVBO", "text": "figure"}],
                },
            ]
        },
        {"cells": [{"cell_type": "markdown", "source": "end"}]},
    ],
}
V3_TEXT = "## Part\n\n```ruby\nputs 1\n```\n\n```output\n1\n```\n\nend\n"
V1 = {"nbformat": 1, "cells": [{"cell_type": "text", "text": "words"}, {"cell_type": "code", "code": "x = 1"}]}


def rendered(form, text="", fields=None, spec=SPEC, **more):
    tally = Tally()
    document = Document("name", text, language="x", fields=fields or {})
    return Renderer(RenderStep(form=form, **more), spec).apply(document, tally), tally


def text_of(form, text="", fields=None, **more):
    result, _ = rendered(form, text, fields, **more)
    assert isinstance(result, Document), result
    assert (result.name, result.language, dict(result.fields)) == ("name", "x", {})
    return result.text


@pytest.mark.parametrize(
    "notebook, text", [(V4, V4_TEXT), (V3, V3_TEXT), (V1, "words\n\n```python\nx = 1\n```\n")], ids=["nbformat 4", "3", "1"]
)
def test_notebooks_of_any_age(notebook, text):
    assert text_of("notebook", json.dumps(notebook)) == text


def test_what_is_left_out_of_a_notebook_is_counted():
    _, tally = rendered("notebook", json.dumps(V4))
    assert tally.changed == {("render", "outputs that are no text"): 1}
    assert "output" not in text_of("notebook", json.dumps(V4), outputs=False)


def code_with(output, source="run()"):
    return json.dumps({"cells": [{"cell_type": "code", "source": source, "outputs": [output]}]})


def test_format_2_and_formats_to_come():
    error = {"output_type": "pyerr", "etype": "NameError", "evalue": "x", "traceback": []}
    old = {"nbformat": 2, "worksheets": [{"cells": [{"cell_type": "code", "input": "x", "language": "python", "outputs": [error]}]}]}
    assert text_of("notebook", json.dumps(old)) == "```python\nx\n```\n\n```output\nNameError: x\n```\n"
    result, tally = rendered("notebook", json.dumps({"nbformat": 5, "cells": [{"cell_type": "slide"}, *V1["cells"]]}))
    assert result.text.startswith("words\n")
    assert tally.changed == {("render", "cells of unknown types"): 1}


def test_long_outputs_are_cut_at_a_character():
    stream = code_with({"output_type": "stream", "text": "é" * 100})
    result, tally = rendered("notebook", stream, max_output_bytes=21)
    assert result.text == f"```python\nrun()\n```\n\n```output\n{'é' * 10}…\n```\n"
    assert tally.changed == {("render", "outputs cut"): 1}
    assert rendered("notebook", stream, max_output_bytes=200)[1].changed == {}


def test_outputs_are_what_a_terminal_shows():
    bar = code_with({"output_type": "stream", "text": "\x1b[1m 0 %\r 50 %\r100 %\r\n\x1b[0mdone\r\n"})
    assert "```output\n100 %\ndone\n```" in text_of("notebook", bar)


def test_names_of_objects_are_no_text():
    html = {"output_type": "execute_result", "data": {"text/plain": ["<IPython.core.display.HTML at 0x1112757d0>"], "text/html": "<b>"}}
    result, tally = rendered("notebook", code_with(html))
    assert result.text == "```python\nrun()\n```\n"
    assert tally.changed == {("render", "outputs that are no text"): 1}


def test_a_fence_is_longer_than_what_it_holds():
    assert text_of("notebook", code_with({}, source='"""\n````\n"""')).startswith("`````python\n")


def test_inline_images_are_taken_out():
    cell = {"cell_type": "markdown", "source": f"before ![x](data:image/png;base64,{'A' * 5000}=) after"}
    result, tally = rendered("notebook", json.dumps({"cells": [cell]}))
    assert result.text == "before ![x](data:) after\n"
    assert tally.changed == {("render", "inline images"): 1}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"cells": [' + "9" * 5000 + "]}", "not JSON"),
        ("[]", "not a notebook"),
        ("{}", "not a notebook"),
        ('{"cells": 3}', "malformed notebook"),
        ('{"cells": [3]}', "malformed notebook"),
        ('{"cells": [{"cell_type": "code", "source": [1]}]}', "malformed notebook"),
        ('{"cells": [{"cell_type": "code", "source": "x", "outputs": [1]}]}', "malformed notebook"),
        ('{"cells": [{"source": "x"}]}', "malformed notebook"),
        ('{"cells": [{"cell_type": "slide", "source": "x"}]}', "empty notebook"),
        ('{"nbformat": 3, "metadata": {}}', "empty notebook"),
        ('{"worksheets": [{"cells": null}]}', "malformed notebook"),
        ('{"worksheets": 1}', "malformed notebook"),
        ('{"cells": []}', "empty notebook"),
        ('{"cells": [{"cell_type": "code", "source": " "}]}', "empty notebook"),
    ],
)
def test_broken_notebooks_are_dropped(text, reason):
    result, tally = rendered("notebook", text)
    assert isinstance(result, Drop)
    assert result.reason == reason
    assert not tally.dropped  # the caller counts


def test_what_python_and_javascript_write_into_json_is_read():
    text = '{"metadata": {"x": NaN}, "cells": [{"cell_type": "markdown", "source": "a\\ud800b"}]}'
    assert text_of("notebook", text) == "a�b\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["cells", "worksheets", "cell_type", "source", "outputs", "data", "text", "metadata", "kernelspec", "language", "ename"]
            ),
            inner | st.sampled_from(["code", "markdown", "heading", "stream", "error"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_any_json_is_rendered_or_dropped(value):
    result, _ = rendered("notebook", json.dumps({"cells": [value], "worksheets": [value]}))
    assert isinstance(result, Drop) or result.text.strip()
    for form in ("commit", "issue", "stackexchange"):
        fields = value if isinstance(value, dict) else {}
        result, _ = rendered(form, "words", {**fields, "answers": value, "events": value, "files": [value]})
        assert isinstance(result, Drop) or result.text.encode("utf-8").strip()
