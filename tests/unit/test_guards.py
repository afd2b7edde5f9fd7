"""Guards, the parts of them: what is usual, what is a spike, what is planned to be left out, who is slow."""

from __future__ import annotations

import gc
import json
import math
from statistics import median
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import GuardsConfig, RunConfig, parse_config
from megatron_codemix.engine import StepResult
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.mixture import Lineage, Plan
from megatron_codemix.train.guards import (
    Garbage,
    Guard,
    History,
    Pace,
    PlannedSkip,
    PlannedSkips,
    RankReport,
    RankState,
    give_up,
    plan_skip,
)

PLAN = cast(Plan, SimpleNamespace(stage_at=lambda step: SimpleNamespace(index=step // 1000)))


def guard(**changes) -> Guard:
    raw = {"spike": {"action": "skip", "window": 8, "sigmas": 6.0}} | changes
    return Guard(GuardsConfig.model_validate(raw), PLAN, PlannedSkips())


def see(made: Guard, step: int, loss: float, norm: float = 1.0) -> str:
    """What the guard says of a step with this loss."""
    accepted = made.at(step)(StepResult(loss * 10, 10, norm))
    assert accepted == (made.verdict.action == "go on")
    return made.verdict.action


# --- what is usual


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


# --- what is done about a step


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


# --- what is planned to be left out


def skips(*spans: tuple[int, int]) -> PlannedSkips:
    return PlannedSkips([PlannedSkip(first, end, first, f"fault {first}") for first, end in spans])


def test_planned_skips_survive_the_file(tmp_path):
    assert len(PlannedSkips.read(tmp_path)) == 0
    planned = skips((3, 5), (9, 12))
    planned.write(tmp_path)
    found = PlannedSkips.read(tmp_path)
    assert len(found) == 2
    said = [found.why(step) for step in range(13)]
    assert [step for step, why in enumerate(said) if why] == [3, 4, 9, 10, 11]
    assert said[4] == "rewound: fault 3"
    assert found.last == PlannedSkip(9, 12, 9, "fault 9")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format_version": 2, "skips": []}',
        '{"format_version": 1, "skips": [{"first": 5, "end": 4, "fault": 5, "why": ""}]}',
        '{"format_version": 1, "skips": [{"first": true, "end": 4, "fault": 2, "why": ""}]}',
        '{"format_version": 1, "skips": [{"first": 1}]}',
    ],
)
def test_a_damaged_file_of_skips_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "skips.json").write_text(content)
    with pytest.raises(UserError, match=r"skips\.json") as raised:
        PlannedSkips.read(tmp_path)
    assert len(raised.value.problems) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=4), st.lists(st.booleans(), max_size=36))
def test_weights_are_given_up_iff_they_were_trained_on_a_step_to_be_left_out(spans, trained):
    planned = skips(*[(first, first + length) for first, length in spans])
    lineage = Lineage()
    for step, was in enumerate(trained):
        if was:
            lineage.add_interval("plan", step, step + 1)
        else:
            lineage.skip(step, step + 1, "bad")
    assert planned.given_up(lineage) == any(was and planned.why(step) for step, was in enumerate(trained))


def stored(folder, *steps: int, lineages: dict[int, Lineage] | None = None) -> None:
    """Checkpoint folders of a run that trained on everything, or as `lineages` says."""
    for step in steps:
        lineage = Lineage()
        lineage.add_interval("plan", 0, step)
        path = folder / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "lineage.json").write_text(json.dumps((lineages or {}).get(step, lineage).as_json()))


@pytest.mark.parametrize(
    ("before", "fault", "base", "first"),
    [(5, 27, 20, 22), (0, 27, 25, 27), (10, 27, 10, 17), (20, 27, 10, 10)],
)
def test_a_rewind_leaves_out_what_surrounds_the_fault_as_far_as_checkpoints_reach(tmp_path, before, fault, base, first):
    stored(tmp_path, 10, 20, 25)
    skip = plan_skip(GuardsConfig(skip_before=before, skip_after=4), fault, base, 100, "bad")
    assert skip == PlannedSkip(first, fault + 4, fault, "bad")
    give_up(tmp_path, PlannedSkips([skip]), lambda: None)
    left = [int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == [step for step in (10, 20, 25) if step <= first]


def test_a_skip_ends_with_the_plan():
    assert plan_skip(GuardsConfig(skip_before=0, skip_after=50), 12, 10, 20, "bad").end == 20


def test_without_a_checkpoint_there_is_no_going_back():
    with pytest.raises(JobError, match=r"^bad; there is no checkpoint to go back to: set checkpoint.every_steps"):
        plan_skip(GuardsConfig(), 12, None, 20, "bad")


def test_what_has_left_out_the_planned_steps_is_kept(tmp_path):
    obeyed = Lineage()
    obeyed.add_interval("plan", 0, 12)
    obeyed.skip(12, 15, "rewound: bad")
    obeyed.add_interval("plan", 15, 20)
    stored(tmp_path, 10, 14, 20, lineages={20: obeyed})
    (tmp_path / "checkpoints" / "step-00000016").mkdir()  # damaged: whoever opens it says so
    give_up(tmp_path, skips((12, 15)), lambda: None)
    assert sorted(path.name[-2:] for path in (tmp_path / "checkpoints").iterdir()) == ["10", "16", "20"]


def test_an_altered_list_of_skips_does_not_cost_the_run(tmp_path):
    stored(tmp_path, 10, 20)
    with pytest.raises(UserError, match=r"skips.json: would give up every checkpoint; it was altered"):
        give_up(tmp_path, skips((0, 30)), lambda: None)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_who_was_replaced_deletes_nothing(tmp_path):
    stored(tmp_path, 10, 20)

    def replaced() -> None:
        raise UserError("another process trains into it")

    with pytest.raises(UserError):
        give_up(tmp_path, skips((12, 15)), replaced)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


# --- ranks and garbage


def test_the_slowest_rank_is_named():
    states = [RankState(f"node{rank // 2}", seconds, 0.01, (rank + 1) << 30, None) for rank, seconds in enumerate([0.2, 0.2, 0.3, 0.2])]
    report = RankReport(states)
    assert (report.slowest, report.factor) == (2, pytest.approx(1.5))
    memory, slow = report.words()
    assert memory == "most memory held by a rank so far: 4.00 GiB of the host (rank 3)"
    assert slow == "slowest rank: 2 on node1, 1.50 × the median of 4 ranks (0.3 s of own work a step, 0.01 s of it waiting for data)"
    line = report.as_json()
    assert (line["slowest"], line["host"], line["host_memory"], line["device_memory"]) == (2, "node1", {"rank": 3, "bytes": 4 << 30}, None)


def test_ranks_that_are_alike_are_not_worth_a_line():
    states = [RankState("node", 0.2 + rank / 1000, 0.0, 1 << 30, (5 - rank) << 30) for rank in range(3)]
    assert RankReport(states).words() == ["most memory held by a rank so far: 5.00 GiB of a device (rank 0), 1.00 GiB of the host (rank 0)"]


def test_a_pace_is_the_mean_since_the_report_before():
    pace = Pace(torch.device("cpu"))
    for own in (1.0, 3.0):
        pace.add(own, 0.5)
    state = pace.state()
    assert (state.seconds, state.loader_seconds, state.device_bytes) == (2.5, 0.5, None)
    assert state.host_bytes > 10 << 20
    pace.add(7.0, 0.0)
    assert pace.state().seconds == 7.0
    assert pace.state().seconds == 0.0


class _Knot:
    """Garbage that only a collection finds."""

    alive = 0

    def __init__(self) -> None:
        self.own = self
        _Knot.alive += 1

    def __del__(self) -> None:
        _Knot.alive -= 1


def test_garbage_is_collected_at_its_steps_and_at_no_other_time():
    gc.collect()
    with Garbage(3) as garbage:
        assert not gc.isenabled()
        seen = []
        for done in range(1, 7):
            _Knot()
            garbage.step(done)
            seen.append(_Knot.alive)
        assert seen == [1, 2, 0, 1, 2, 0]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_collection_is_given_back_after_an_error():
    with pytest.raises(RuntimeError), Garbage(1):
        raise RuntimeError
    assert gc.isenabled()


def test_without_the_setting_python_collects_as_it_likes():
    with Garbage(0) as garbage:
        garbage.step(1)
        assert gc.isenabled()


# --- config


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"spike": {"window": 4}}, "guards.spike.window"),
        ({"spike": {"sigmas": 0}}, "guards.spike.sigmas"),
        ({"non_finite": "ignore"}, "guards.non_finite"),
        ({"max_rewinds": 0}, "guards.max_rewinds"),
        ({"skip_after": 0}, "guards.skip_after"),
        ({"spikes": {}}, "guards.spikes"),
    ],
)
def test_bad_settings_are_named(section, path):
    raw = {
        "name": "x",
        "output": "x",
        "tokenizer": "x",
        "sources": {"a": {"path": "x"}},
        "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "ffn_hidden_size": 8},
        "stages": [
            {
                "name": "a",
                "tokens": 64,
                "mixture": {"a": 1},
                "batch_size": 1,
                "sequence_length": 8,
                "learning_rate": {"shape": "constant", "peak": 1e-3},
            }
        ],
    }
    parse_config(raw, RunConfig, "run.yaml")
    with pytest.raises(UserError) as raised:
        parse_config({**raw, "guards": section}, RunConfig, "run.yaml")
    assert len(raised.value.problems) == 1
    assert path in raised.value.problems[0]
