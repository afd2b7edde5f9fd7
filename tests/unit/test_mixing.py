"""Competitive and additive mixing against the published volumes; controls; what is refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import RunConfig, dump_yaml, load_config, parse_config
from megatron_codemix.config.mixing import additive_tokens
from megatron_codemix.errors import UserError


def _raw(**mixing) -> dict:
    return {
        "name": "r",
        "output": "o",
        "tokenizer": "t",
        "sources": {name: {"path": name} for name in ("github", "markup", "c4", "news", "scrambled")},
        "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 32},
        "stages": [
            {
                "name": "main",
                "mixing": {"code": {"github": 1}, "language": {"c4": 1}, **mixing},
                "batch_size": 128,
                "sequence_length": 1024,
                "learning_rate": {"shape": "constant", "peak": 1e-3},
            }
        ],
    }


def _stage(**mixing):
    return parse_config(_raw(**mixing), RunConfig, "run.yaml").stages[0]


def _problems(raw: dict) -> tuple[str, ...]:
    with pytest.raises(UserError) as error:
        parse_config(raw, RunConfig, "run.yaml")
    return error.value.problems


@pytest.mark.parametrize("percent", range(0, 100, 10))
def test_competitive_replaces_language(percent):
    stage = _stage(mode="competitive", code_share=percent / 100, tokens=132e9)
    assert stage.tokens == 132_000_000_000
    assert Fraction(stage.mixture.get("github", "0")) == Fraction(percent, 100)
    assert Fraction(stage.mixture["c4"]) == 1 - Fraction(percent, 100)


@pytest.mark.parametrize(
    ("share", "total", "code"), [(0.1, 146.7, 14.7), (0.2, 165, 33), (0.3, 188.6, 56.6), (0.4, 220, 88), (0.5, 264, 132)]
)
def test_additive_adds_code_to_the_published_volumes(share, total, code):
    stage = _stage(mode="additive", code_share=share, language_tokens=132e9)
    assert stage.tokens / 1e9 == pytest.approx(total, abs=0.05)
    assert stage.tokens * float(Fraction(stage.mixture["github"])) / 1e9 == pytest.approx(code, abs=0.05)
    assert stage.tokens * float(Fraction(stage.mixture["c4"])) == pytest.approx(132e9, abs=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**15), st.fractions(0, Fraction(999, 1000)))
def test_additive_language_is_fixed_to_the_nearest_token(language, share):
    total = additive_tokens(language, share)
    assert abs(total * (1 - share) - language) <= Fraction(1, 2)
    assert total >= language


def test_parts_multiply():
    stage = _stage(
        mode="competitive", code_share="1/2", tokens=1e6, code={"github": 0.8, "markup": 0.2}, language={"c4": "1/3", "news": "2/3"}
    )
    assert {name: Fraction(part) for name, part in stage.mixture.items()} == {
        "github": Fraction(2, 5),
        "markup": Fraction(1, 10),
        "c4": Fraction(1, 6),
        "news": Fraction(1, 3),
    }


@pytest.mark.parametrize(
    ("control", "extra", "tokens", "mixture"),
    [
        ("language_only", {}, 1_000_000, {"c4": "1"}),
        ("volume_matched", {}, 1_250_000, {"c4": "1"}),
        ("placebo", {"placebo": {"scrambled": 1}}, 1_250_000, {"scrambled": "1/5", "c4": "4/5"}),
        (None, {}, 1_250_000, {"github": "1/5", "c4": "4/5"}),
    ],
)
def test_controls_of_an_additive_run(control, extra, tokens, mixture):
    stage = _stage(mode="additive", code_share=0.2, language_tokens=1e6, control=control, **extra)
    assert (stage.tokens, stage.mixture) == (tokens, mixture)


def test_a_resolved_config_reads_back(tmp_path):
    config = parse_config(_raw(mode="additive", code_share="1/3", language_tokens=1e6), RunConfig, "run.yaml")
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "config.yaml", RunConfig) == config


def test_a_stage_that_says_another_thing_than_its_mixing_is_refused(tmp_path):
    raw = _raw(mode="competitive", code_share=0.5, tokens=1e6)
    raw["stages"][0] |= {"tokens": 5, "mixture": {"c4": 1}}
    problems = _problems(raw)
    assert [problem.split(":")[1].strip() for problem in problems] == ["stages[0].tokens", "stages[0].mixture"]


@pytest.mark.parametrize(
    ("mixing", "field"),
    [
        ({"mode": "competitive", "code_share": 0.5, "language_tokens": 5}, "tokens"),
        ({"mode": "additive", "code_share": 0.5, "tokens": 5}, "language_tokens"),
        ({"mode": "additive", "code_share": 1, "language_tokens": 5}, "code_share"),
        ({"mode": "competitive", "code_share": 0.5, "tokens": 5, "control": "volume_matched"}, "control"),
        ({"mode": "additive", "code_share": 0.5, "language_tokens": 5, "control": "placebo"}, "placebo"),
        ({"mode": "additive", "code_share": 0.5, "language_tokens": 5, "placebo": {"scrambled": 1}}, "placebo"),
        ({"mode": "competitive", "code_share": 0.5, "tokens": 5, "code": {"github": 0.5}}, "code"),
        ({"mode": "competitive", "code_share": 0.5, "tokens": 5, "language": {"github": 1}}, "language.github"),
        ({"mode": "competitive", "code_share": 2, "tokens": 5}, "code_share"),
        ({"mode": "competitive", "code_share": 0.5, "tokens": 5, "code": {}}, "code"),
        ({"mode": "sideways", "code_share": 0.5, "tokens": 5}, "mode"),
    ],
)
def test_mistakes_are_told_by_their_field_and_alone(mixing, field):
    problems = _problems(_raw(**mixing))
    assert any(problem.startswith(f"run.yaml: stages[0].mixing.{field}") for problem in problems)
    assert all(".mixing." in problem for problem in problems)


def test_an_unknown_source_is_refused():
    (problem,) = _problems(_raw(mode="competitive", code_share=0.5, tokens=1e6, code={"githug": 1}))
    assert "no source of that name" in problem and "githug" in problem
