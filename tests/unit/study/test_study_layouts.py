"""Layouts crossed with shares: balanced turns, twins that compare every layout, and none of it in the statistics of shares."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import StudyConfig, dump_yaml, load_config, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.study import command, stages
from megatron_codemix.study.agreement import agreement, difference
from megatron_codemix.study.expand import make_plan
from megatron_codemix.study.layouts import assign, rotation, twins
from megatron_codemix.study.plan import StudyPlan, begin_arm, check_against_existing

_SIZES = (st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
LAYOUTS = {
    "single": {},
    "tp2": {"parallel": {"tensor": 2}},
    "dp2": {"parallel": {"distributed_optimizer": True}, "processes": 2, "micro_batch_size": 2},
}


@given(*_SIZES)
@settings(max_examples=300, deadline=None)
def test_layout_and_share_are_not_aliased(num_shares, num_seeds, num_layouts):
    turns = rotation(num_shares, num_seeds, num_layouts)
    counts = Counter(layout for row in turns for layout in row)
    used = [counts[layout] for layout in range(num_layouts)]
    assert sum(used) == num_shares * num_seeds and max(used) - min(used) <= 1
    if num_layouts == 1:
        return
    if num_seeds >= 2:
        assert all(len(set(row)) >= 2 for row in turns)
    if num_shares >= 2:
        assert all(len(set(column)) >= 2 for column in zip(*turns))
        shares_of = {layout: {share for share, row in enumerate(turns) if layout in row} for layout in counts}
        assert all(len(shares_of[layout]) >= 2 for layout, number in counts.items() if number >= 2)


@given(*_SIZES)
@settings(max_examples=100, deadline=None)
def test_more_seeds_leave_the_turns_that_are_there(num_shares, num_seeds, num_layouts):
    now, later = (rotation(num_shares, seeds, num_layouts) for seeds in (num_seeds, num_seeds + 1))
    assert [row[:num_seeds] for row in later] == now


@given(*_SIZES, st.data())
@settings(max_examples=300, deadline=None)
def test_twins_compare_every_layout_with_the_first(num_shares, num_seeds, num_layouts, data):
    if num_layouts == 1:
        num_layouts = 2
    per_share = data.draw(st.integers(0, num_seeds))
    turns = rotation(num_shares, num_seeds, num_layouts)
    found = twins(turns, num_layouts, per_share, {})
    assert Counter(share for share, _, _ in found) == Counter({share: per_share for share in range(num_shares) if per_share})
    assert len({(share, seed) for share, seed, _ in found}) == len(found)
    compared = Counter()
    for share, seed, layout in found:
        assert layout != turns[share][seed] and 0 in (layout, turns[share][seed])
        compared[layout or turns[share][seed]] += 1
    assert len(compared) == min(len(found), num_layouts - 1)


def _begun(turns: list[list[int]]) -> dict[tuple[int, int], int]:
    return {(share, seed): layout for share, row in enumerate(turns) for seed, layout in enumerate(row)}


@given(*_SIZES, st.integers(0, 3), st.integers(0, 3), st.data())
@settings(max_examples=300, deadline=None)
def test_a_study_that_grows_keeps_its_layouts_and_its_twins(num_shares, num_seeds, num_layouts, more_shares, more_seeds, data):
    num_layouts = max(2, num_layouts)
    per_share = data.draw(st.integers(0, num_seeds))
    more_twins = data.draw(st.integers(0, num_seeds + more_seeds - per_share))
    before = assign(num_shares, num_seeds, num_layouts, {}, {})
    assert before == rotation(num_shares, num_seeds, num_layouts)
    twins_before = twins(before, num_layouts, per_share, {})
    some = data.draw(st.sets(st.sampled_from(sorted(_begun(before)))))
    some_twins = data.draw(st.sets(st.sampled_from(twins_before))) if twins_before else set()
    begun = {arm: layout for arm, layout in _begun(before).items() if arm in some}
    begun_twins = {(share, seed): layout for share, seed, layout in some_twins}
    assert assign(num_shares, num_seeds, num_layouts, begun, begun_twins) == before, "what has begun so far moves nothing"

    after = assign(num_shares + more_shares, num_seeds + more_seeds, num_layouts, begun, begun_twins)
    found = twins(after, num_layouts, per_share + more_twins, begun_twins)
    assert begun.items() <= _begun(after).items() and some_twins <= set(found)
    assert Counter(share for share, _, _ in found) == {share: per_share + more_twins for share, _, _ in found}
    assert all(layout != after[share][seed] and 0 in (layout, after[share][seed]) for share, seed, layout in found)
    if len(some) == num_shares * num_seeds:
        counts = Counter(_begun(after).values())
        assert max(counts.values()) - min(counts[layout] for layout in range(num_layouts)) <= 1


def test_a_share_added_drops_no_arm_and_no_twin(tmp_path, raw):
    layouts = LAYOUTS | {"tp2-small": {"parallel": {"tensor": 2}, "micro_batch_size": 2}}
    first, grown = (_crossed(raw(tmp_path), layouts=layouts, twins=2, shares=shares) for shares in ([0], [0, 0.25]))
    before = _plan(first)
    for arm in before.trained:
        begin_arm(before, arm)
    after = _plan(grown)
    check_against_existing(after)
    assert {arm.name: arm.hash for arm in before.trained}.items() <= {arm.name: arm.hash for arm in after.trained}.items()
    assert Counter(arm.layout for arm in after.arms) == dict.fromkeys(layouts, 1)


def _crossed(raw: dict, **changes) -> dict:
    raw["base"]["micro_batch_size"] = 4
    raw["base"]["model"]["num_layers"] = 2
    return raw | {"layouts": LAYOUTS, "twins": 1} | changes


def _plan(raw: dict) -> StudyPlan:
    return make_plan(parse_config(raw, StudyConfig, "study.yaml"))


def test_the_plan_carries_layouts_and_twins(tmp_path, raw):
    plan = _plan(_crossed(raw(tmp_path)))
    assert [arm.layout for arm in plan.arms] == ["single", "tp2", "tp2", "dp2", "dp2", "single"]
    assert [(twin.name, twin.twin_of) for twin in plan.twins] == [
        ("code-0-seed0-as-dp2", "code-0-seed0"),
        ("code-25-seed0-as-single", "code-25-seed0"),
        ("code-50-seed0-as-single", "code-50-seed0"),
    ]
    assert [arm.processes for arm in plan.arms] == [1, 2, 2, 2, 2, 1]
    data_parallel = plan.arms[3]
    assert data_parallel.data_ranks == 2 and data_parallel.config["micro_batch_size"] == 2
    assert data_parallel.config["parallel"]["distributed_optimizer"] and data_parallel.config["output"].endswith("runs/code-25-seed1")
    assert len({arm.hash for arm in plan.trained}) == 9
    for twin in plan.twins:
        original = next(arm for arm in plan.arms if arm.name == twin.twin_of)
        for key in ("seeds", "stages", "model", "optimizer"):
            assert twin.config[key] == original.config[key]
        assert twin.schedule == original.schedule and twin.inputs == original.inputs
    plan.save()
    assert StudyPlan.load(tmp_path) == plan


def test_a_study_without_layouts_is_as_it_was(tmp_path, raw):
    plan = _plan(raw(tmp_path))
    assert plan.twins == () and plan.trained == plan.arms
    assert all(arm.layout is None and arm.processes == 1 for arm in plan.arms)
    document = plan.as_json()
    for arm in document["arms"]:  # as an earlier codemix wrote it
        for key in ("layout", "data_ranks", "twin_of"):
            del arm[key]
    del document["twins"]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert StudyPlan.load(tmp_path) == plan


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"layouts": {"a": {"parallel": {"tensor": 3}}}, "twins": 0}, "layouts.a.parallel.tensor: 3 does not divide model.num_att"),
        ({"layouts": {"a": {"parallel": {"tensr": 3}}}, "twins": 0}, "layouts.a.parallel.tensr: unknown key; did you mean 'tensor'?"),
        ({"layouts": {"a": {"parallel": {"tensor": 2}, "processes": 3}}, "twins": 0}, "layouts.a.processes: 3 is not a multiple"),
        ({"layouts": {"a": {"processes": 4}}, "twins": 0}, "layouts.a: stages[0].batch_size: 8 windows cannot be shared by 4"),
        ({"layouts": {"a": {}, "b": {"processes": 1}}}, "layouts.b: is 'a' again"),
        ({"layouts": {"a": {}, "b": {"micro_batch_size": 4}}}, "layouts.b: is 'a' again"),
        ({"layouts": {"a/b": {}}, "twins": 0}, "layouts.a/b: not a name for a folder"),
        ({"layouts": {"a": {}}}, "twins: 1 needs another layout to train under"),
        ({"layouts": {}}, "twins: 1 needs another layout to train under"),
        ({"twins": 3}, "twins: 3 is more than the arms of a share"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be_are_refused_by_name(tmp_path, raw, changes, expected):
    with pytest.raises(UserError) as caught:
        parse_config(_crossed(raw(tmp_path), **changes), StudyConfig, "study.yaml")
    assert [problem for problem in caught.value.problems if expected in problem], caught.value.problems
    assert all("layouts" in problem or "twins" in problem for problem in caught.value.problems)
    assert len(set(caught.value.problems)) == len(caught.value.problems)


def test_layouts_and_a_layout_of_the_base_contradict(tmp_path, raw):
    config = _crossed(raw(tmp_path))
    config["base"]["parallel"] = {"tensor": 2}
    with pytest.raises(UserError, match=r"base\.parallel: the layouts set it"):
        parse_config(config, StudyConfig, "study.yaml")


def test_a_config_with_layouts_survives_its_own_yaml(tmp_path, raw):
    config = parse_config(_crossed(raw(tmp_path)), StudyConfig, "study.yaml")
    path = tmp_path / "again.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(path, StudyConfig) == config and make_plan(load_config(path, StudyConfig)) == make_plan(config)


@pytest.fixture
def crossed(study, raw) -> str:
    """study.yaml with layouts and twins, the stand-in in place of the commands."""
    config = _crossed(raw(study.parent / "study"))
    study.write_text(dump_yaml(parse_config(config, StudyConfig, "study.yaml")))
    return str(study)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_every_arm_and_twin_is_trained_with_its_processes(crossed, study, calls, capfd, jobs):
    assert command.main(["run", crossed, "--jobs", jobs]) == 0
    assert len(calls()) == 9 * len(stages.STAGES)
    status = capfd.readouterr().out.splitlines()
    assert status[0].split()[3] == "layout" and len(status) == 10
    folder = study.parent / "study"
    train_log = (folder / "arms" / "code-25-seed0" / "train.log").read_text()
    assert "--nproc 2" in train_log and "--nproc" not in (folder / "arms" / "code-25-seed0-as-single" / "train.log").read_text()
    assert command.main(["report", crossed]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert len(results["arms"]) == 6 and len(results["twins"]) == 3
    # twins change nothing about shares
    assert [list(row["by_seed"]) for item in results["comparisons"] for row in item["differences"]] == [["0", "1"]] * 4
    pair = results["agreement"]["pairs"][0]
    assert pair["layouts"] == ["single", "dp2"] and pair["loss"]["largest"] == pytest.approx(16e-6) and pair["loss"]["at_step"] == 16
    assert set(pair["held_out"]) == set(pair["validation"]) == {"code", "text"}
    page = (folder / "report.html").read_text()
    assert "Layouts move held-out bits per byte by at most" in page and "tp2, again as single" in page


def test_shares_and_seeds_can_be_added_to_what_has_begun(crossed, calls):
    assert command.main(["run", crossed, "shares=[0, 0.25]", "--jobs", "2"]) == 0
    before = len(calls())
    assert command.main(["run", crossed, "--jobs", "2"]) == 0
    assert {call.split(":")[0] for call in calls()[before:]} == {"code-50-seed0", "code-50-seed1", "code-50-seed0-as-single"}
    before = len(calls())
    assert command.main(["run", crossed, "seeds=[0, 1, 2]", "--jobs", "2"]) == 0
    assert {call.split(":")[0] for call in calls()[before:]} == {"code-0-seed2", "code-25-seed2", "code-50-seed2"}


def test_another_layout_under_a_name_in_use_is_refused(crossed):
    assert command.main(["run", crossed, "shares=[0.25]", "seeds=[0]", "twins=0"]) == 0
    with pytest.raises(UserError, match=r"data-parallel ranks: was 1, is 2"):
        command.main(["run", crossed, "shares=[0.25]", "seeds=[0]", "twins=0", "layouts.single={processes: 2}"])


def _arm(losses: list[float], bits: float, **more) -> dict:
    task = {"kind": "bits_per_byte", "metrics": {"bits_per_byte": bits}}
    validation = [{"step": step, "source": "code", "bits_per_byte": bits + step} for step in (1, 2)]
    return {"curve": {"step": [1, 2, 3][: len(losses)], "loss": losses}, "validation": validation, "evaluation": {"held": task}, **more}


def test_differences_are_absolute_and_over_what_both_have():
    found = difference(_arm([3.0, 2.0, 1.0], 2.5), _arm([3.5, 2.25], 2.0))
    assert found["loss"] == {"largest": 0.5, "at_step": 1, "last": 0.25}
    assert found["validation"] == {"code": {"largest": 0.5, "last": 0.5}} and found["held_out"] == {"held": 0.5}
    empty = difference(_arm([], 1.0) | {"validation": [], "evaluation": {}}, _arm([1.0], 1.0))
    assert empty == {"loss": {}, "validation": {}, "held_out": {}}


def test_the_spread_of_seeds_is_the_largest_of_their_pairs():
    arms = [_arm([3.0 + seed, 2.0], 2.0 + seed, name=f"a{seed}", share=0.5, seed=seed, layout={"name": "x"}) for seed in (0, 1, 3)]
    twin = _arm([3.0, 2.0], 2.0, name="t", share=0.5, seed=0, layout={"name": "y"}, twin_of="a0")
    found = agreement(arms, [twin])
    assert found["pairs"][0]["layouts"] == ["x", "y"] and found["pairs"][0]["loss"]["largest"] == 0
    (spread,) = found["seeds"]
    assert spread["loss"] == {"largest": 3.0, "at_step": 1, "last": 0.0} and spread["held_out"] == {"held": 3.0}
    assert agreement(arms, []) == {"pairs": [], "seeds": []}
