"""The tokenizer's report: every figure against a slow count, on texts whose answer is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import tokenizer_report
from data_prep.tokenizer_report import CHART_NAME, JSON_NAME, MARKDOWN_NAME, indentations, write_report
from megatron_codemix.files import read_json
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

CODE = "def f(x):\n    if x:\n        return x + 1\n\n    \n\treturn 'é'\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer([CODE.replace("é", "e"), "words and more words of prose\n"] * 50, 460))


def slow(tokenizer: Tokenizer, text: str) -> dict[str, int]:
    """The same counts, a token at a time."""
    spans, place = [], 0
    for number in tokenizer.encode(text).tolist():
        content = tokenizer.reference.vocabulary.token_bytes[number]
        spans.append((number, content, place))
        place += len(content)
    encoded = text.encode()
    runs = [found.span(1) for found in re.finditer(rb"(?:^|(?<=\n))([ \t]+)(?=[^ \t\r\n])", encoded)]
    return {
        "bytes": len(encoded),
        "tokens": len(spans),
        "fallback_tokens": sum(number in tokenizer.reference.vocabulary.byte_ids for number, _, _ in spans),
        "whitespace_tokens": sum(content.isspace() for _, content, _ in spans),
        "whitespace_bytes": sum(len(content) for _, content, _ in spans if content.isspace()),
        "indentations": len(runs),
        "indentation_tokens": sum(start <= place < end for _, _, place in spans for start, end in runs),
    }


def test_figures_equal_a_slow_count(tokenizer: Tokenizer, tmp_path: Path) -> None:
    samples = {"code": [("python", CODE), (None, "    x\n")], "prose": [("text", "words and prose 日本"), ("text", "")]}
    report = write_report(tokenizer, samples, tmp_path)
    assert report == read_json(tmp_path / JSON_NAME, "report")
    for source, documents in samples.items():
        counted = [slow(tokenizer, text) for _, text in documents]
        for name in counted[0]:
            assert report["sources"][source][name] == sum(one[name] for one in counted), (source, name)
    prose = report["sources"]["prose"]
    assert prose["fallback_tokens"] == prose["fallback_bytes"] == 6
    assert prose["byte_fallback_share"] == 6 / prose["tokens"]
    assert prose["tokens_per_indentation"] is None
    assert report["languages"].keys() == {"python", "(unknown)", "text"}
    assert report["languages"]["python"]["indentations"] == 3
    assert report["languages"]["text"]["documents"] == 2
    page = (tmp_path / MARKDOWN_NAME).read_text()
    assert f"| code | 2 | 0.00 | {report['sources']['code']['bytes_per_token']:.2f} |" in page
    assert (tmp_path / CHART_NAME).read_bytes().startswith(b"\x89PNG")


def test_the_chart_and_page_survive_any_names(tokenizer: Tokenizer, tmp_path: Path) -> None:
    samples = {f"s{number}": [(f"a|b$x{number}$", "x y")] for number in range(60)}
    write_report(tokenizer, samples, tmp_path)
    assert r"| a\|b$x3$ |" in (tmp_path / MARKDOWN_NAME).read_text()
    assert write_report(tokenizer, {"empty": []}, tmp_path)["sources"]["empty"]["bytes_per_token"] is None


def test_a_sample_of_many_batches_is_measured_whole(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_report, "_BATCH_BYTES", 100)
    report = write_report(tokenizer, {"code": ((None, CODE) for _ in range(50))}, tmp_path)
    assert report["sources"]["code"]["documents"] == 50
    assert report["sources"]["code"]["bytes"] == 50 * len(CODE.encode())


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=" \t\n\rxé", max_size=40))
def test_indentations_of_any_text(text: str) -> None:
    encoded = text.encode()
    expected = [found.span(1) for found in re.finditer(rb"(?:^|(?<=\n))([ \t]+)(?=[^ \t\r\n])", encoded)]
    starts, ends = indentations(text)
    np.testing.assert_array_equal(np.stack([starts, ends], 1).reshape(-1, 2), np.array(expected, np.int64).reshape(-1, 2))
