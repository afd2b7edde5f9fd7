"""The demo: its sizes follow from the corpus, and its files are a user's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import PrepConfig, RunConfig, StudyConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.study import demo
from megatron_codemix.study.layouts import rotation, twins


@given(st.integers(0, 100_000), st.integers(0, 100_000))
@settings(max_examples=100, deadline=None)
def test_every_arm_stays_under_one_epoch_on_any_python(code_windows, text_windows):
    try:
        steps = demo.demo_steps(code_windows, text_windows)
    except UserError:
        smallest = min(text_windows, code_windows / max(demo.SHARES))
        assert smallest * 0.95 < (demo.MIN_STEPS + 1) * demo.BATCH_SIZE
        return
    windows = steps * demo.BATCH_SIZE
    assert windows * demo.SEQUENCE_LENGTH <= demo.MAX_TOKENS
    for share in demo.SHARES:
        assert windows * (1 - share) <= 0.95 * text_windows and windows * share <= 0.95 * code_windows


def test_the_files_it_writes_are_valid_and_say_what_they_are():
    prep = parse_config(demo.prep_config(Path("demo")), PrepConfig, "prep.yaml")
    assert {spec.kind for spec in prep.sources.values()} == {"stdlib"}
    study = parse_config(demo.study_config(Path("demo"), 819_200), StudyConfig, "study.yaml")
    assert "says nothing about code pretraining" in study.banner
    assert len(study.shares) == 3 and len(study.seeds) == 2
    plan = rotation(len(study.shares), len(study.seeds), len(study.layouts))
    assert set(study.layouts) == {"single", "tp2", "pp2", "dp2"} and {layout for row in plan for layout in row} == {0, 1, 2, 3}
    compared = {frozenset((plan[share][seed], layout)) for share, seed, layout in twins(plan, 4, study.twins, {})}
    assert compared == {frozenset((0, other)) for other in (1, 2, 3)}
    assert [layout.num_processes for layout in study.layouts.values()] == [1, 2, 2, 2]
    for share in study.shares:
        run = parse_config(study.run_config(share, 0), RunConfig, "run")
        assert run.stages[0].tokens == 819_200 and all(source.max_epochs == 1.0 for source in run.sources.values())
    assert all(path.is_relative_to(prep.output) for path in study.evaluation.bits_per_byte.values())


def test_a_stage_that_fails_ends_the_demo_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_codemix", lambda *arguments, show=True: 2)
    with pytest.raises(UserError, match=r"'codemix prep tokenizer .*' ended with exit code 2"):
        demo.main(["--output", str(tmp_path / "demo")])
