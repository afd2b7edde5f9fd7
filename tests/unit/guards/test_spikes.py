"""What is usual, what is a spike, and what is done about a step."""

from __future__ import annotations

import json
import math
from statistics import median
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import GuardsConfig
from megatron_codemix.engine import StepResult
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan
from megatron_codemix.train.guards import Guard, History, PlannedSkip, PlannedSkips

PLAN = cast(Plan, SimpleNamespace(stage_at=lambda step: SimpleNamespace(index=step // 1000)))


def guard(**changes) -> Guard:
    raw = {"spike": {"action": "skip", "window": 8, "sigmas": 6.0}} | changes
    return Guard(GuardsConfig.model_validate(raw), PLAN, PlannedSkips())


def see(made: Guard, step: int, loss: float, norm: float = 1.0) -> str:
    """What the guard says of a step with this loss."""
    accepted = made.at(step)(StepResult(loss * 10, 10, norm))
    assert accepted == (made.verdict.action == "go on")
    return made.verdict.action


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(8, 16))
def test_median_and_spread_are_those_of_the_last_values(values, window):
    history = History(window)
    for value in values:
        history.add(value)
    last = values[-window:]
    middle = median(last)
    assert history.usual == (middle, pytest.approx(1.4826 * median(abs(value - middle) for value in last)))
    assert history.values == last
    assert history.judges == (2 * len(last) >= window)


def test_what_is_no_number_is_not_remembered():
    history = History(8, [1.0, 2.0])
    for value in (math.nan, math.inf, -math.inf):
        history.add(value)
    assert history.values == [1.0, 2.0]


def test_the_spread_of_normal_figures_is_their_standard_deviation():
    values = torch.randn(20001, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
    history = History(len(values), values.tolist())
    assert history.usual is not None
    assert history.usual.spread == pytest.approx(3.0, rel=0.03)


def test_nothing_is_a_spike_before_half_of_the_window_is_there():
    made = guard()
    assert [see(made, step, 2.0) for step in range(3)] == ["go on"] * 3
    assert see(made, 3, 50.0) == "go on"
    assert see(made, 4, 50.0) == "skip"


def test_a_spike_by_hand():
    """2.0, 2.1, …, 2.5: median 2.25, deviations 0.05 0.05 0.15 0.15 0.25 0.25, so the spread is 1.4826 · 0.15 = 0.2224."""
    below, above = 2.25 + 5.99 * 1.4826 * 0.15, 2.25 + 6.01 * 1.4826 * 0.15
    for loss, action in ((below, "go on"), (above, "skip")):
        made = guard()
        for step in range(6):
            see(made, step, 2.0 + step / 10)
        assert see(made, 6, loss) == action
    assert made.verdict.why == "step 7: loss 3.587, 6.0 spreads above the median 2.25 of 6 steps"


def test_ripples_of_a_flat_loss_are_no_spikes():
    made = guard()
    for step in range(8):
        see(made, step, 2.0)
    assert see(made, 8, 2.0 * 1.059) == "go on"
    assert see(made, 9, 2.0 * 1.061) == "skip"


def test_a_low_loss_is_no_spike():
    made = guard()
    for step in range(8):
        see(made, step, 5.0)
    assert see(made, 8, 0.1) == "go on"


@pytest.mark.parametrize(("of", "loss", "norm"), [("loss", "skip", "go on"), ("grad_norm", "go on", "skip"), ("either", "skip", "skip")])
def test_which_figure_is_watched(of, loss, norm):
    for figures, action in (((9.0, 1.0), loss), ((2.0, 9.0), norm)):
        made = guard(spike={"action": "skip", "window": 8, "of": of})
        for step in range(8):
            see(made, step, 2.0)
        assert see(made, 8, *figures) == action


def test_a_spike_may_only_be_said():
    made = guard(spike={"action": "log", "window": 8})
    for step in range(8):
        see(made, step, 2.0)
    assert see(made, 8, 9.0) == "go on"
    assert made.verdict.why.startswith("loss 9, ")
    assert see(made, 9, 2.0) == "go on"
    assert made.verdict.why == ""


def test_a_loss_that_has_risen_for_good_becomes_usual():
    made = guard()
    for step in range(8):
        see(made, step, 2.0)
    said = [see(made, step, 4.0) for step in range(8, 20)]
    assert said[:4] == ["skip"] * 4
    assert said[6:] == ["go on"] * 6


def test_another_stage_has_another_loss():
    made = guard()
    for step in range(992, 1000):
        see(made, step, 2.0)
    assert [see(made, step, 6.0) for step in range(1000, 1004)] == ["go on"] * 4


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
@pytest.mark.parametrize("action", ["stop", "skip", "rewind"])
def test_what_is_no_number_is_refused_from_the_first_step(bad, action):
    made = guard(non_finite=action)
    assert see(made, 0, *bad) == action
    assert made.verdict.why == f"step 1: loss {bad[0]}, gradient norm {bad[1]}"


def test_skips_are_bounded():
    made = guard(non_finite="skip", max_skips=2)
    assert [see(made, step, math.nan) for step in range(3)] == ["skip", "skip", "stop"]
    assert made.verdict.why == "step 3: loss nan, gradient norm 1.0; guards.max_skips 2 is used up"


def test_rewinds_are_bounded():
    made = guard(non_finite="rewind", max_rewinds=1)
    assert see(made, 5, math.nan) == "rewind"
    made.planned = made.planned.with_one_more(PlannedSkip(4, 6, 5, "bad"))
    assert see(made, 7, math.nan) == "stop"
    assert made.verdict.why.endswith("guards.max_rewinds 1 is used up")


def test_a_guard_that_was_saved_judges_as_one_that_was_not():
    draw = torch.Generator().manual_seed(3)
    losses = [2 + float(torch.randn((), generator=draw)) / 10 + (step % 7 == 6) for step in range(40)]
    whole, parted = guard(non_finite="skip", max_skips=4), guard(non_finite="skip", max_skips=4)
    said = []
    for step, loss in enumerate(losses):
        if step % 5 == 0:
            saved = json.loads(json.dumps(parted.as_json(), allow_nan=False))
            parted = guard(non_finite="skip", max_skips=4)
            parted.load(saved)
        said.append((see(whole, step, loss), see(parted, step, loss)))
        assert whole.verdict == parted.verdict
    assert {"skip", "stop", "go on"} == {one for one, _ in said}


@pytest.mark.parametrize("bad", [[], {"format_version": 2}, {"format_version": 1}, {"format_version": 1, "losses": ["x"]}])
def test_a_malformed_memory_is_refused_in_one_line(bad):
    with pytest.raises(UserError, match=r"step-1/guards\.json: .*use another checkpoint"):
        guard().load(bad, "step-1/guards.json")


def test_a_checkpoint_without_a_memory_is_a_new_beginning():
    made = guard()
    for step in range(8):
        see(made, step, 2.0)
    made.load(None)
    assert made.as_json() == guard().as_json()
