"""What is planned to be left out, and which checkpoints are given up for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import GuardsConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.mixture import Lineage
from megatron_codemix.train.guards import PlannedSkip, PlannedSkips, give_up, plan_skip


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
