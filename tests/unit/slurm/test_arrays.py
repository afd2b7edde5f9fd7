"""Units, their records, and which jobs bring what is missing to its end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.errors import UserError
from megatron_codemix.slurm.arrays import Step, Unit, as_ranges, is_done, own_units, plan_submissions, read_record, run_unit, run_units


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_name_each_task_once(tasks: set[int]) -> None:
    found = []
    for part in as_ranges(tasks).split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(tasks)


def test_ranges_join_neighbours() -> None:
    assert as_ranges([3, 0, 1, 2, 7, 9, 10]) == "0-3,7,9-10"


def steps(*sizes: int, last_after: str = "ok") -> list[Step]:
    names = [f"s{number}" for number in range(len(sizes))]
    return [
        Step(
            name,
            tuple(Unit(f"{name}-{index}", ("prep", name, str(index))) for index in range(size)),
            (name,),
            last_after if number else "ok",
        )  # type: ignore[arg-type]
        for number, (name, size) in enumerate(zip(names, sizes))
    ]


def shown(plan: list, submitted: list[str] | None = None) -> list[tuple[str, tuple[int, ...], dict[str, str]]]:
    ids = submitted or [f"{100 + number}" for number in range(len(plan))]
    return [(one.step.name, one.tasks, one.options(ids)) for one in plan]


def test_everything_is_submitted_each_job_behind_the_one_before() -> None:
    assert shown(plan_submissions(steps(3, 1, 2), {}, {})) == [
        ("s0", (0, 1, 2), {"array": "0-2"}),
        ("s1", (0,), {"dependency": "afterok:100", "kill-on-invalid-dep": "yes"}),
        ("s2", (0, 1), {"array": "0-1", "dependency": "afterok:101", "kill-on-invalid-dep": "yes"}),
    ]


def test_a_failed_task_is_submitted_alone_and_what_follows_waits_for_what_still_runs_too() -> None:
    plan = plan_submissions(steps(4, 1), {"s0": [0]}, {"s0": {2: "9_2", 3: "9_3"}, "s1": {0: "10"}})
    assert shown(plan) == [
        ("s0", (1,), {"array": "1"}),
        ("s1", (0,), {"dependency": "afterok:9_2:9_3:100", "kill-on-invalid-dep": "yes"}),
    ]


def test_a_step_that_only_waits_for_ends_waits_for_an_older_one_of_its_own_as_well() -> None:
    plan = plan_submissions(steps(2, 1, last_after="any"), {"s0": [0]}, {"s1": {0: "10"}})
    assert shown(plan)[1] == ("s1", (0,), {"dependency": "afterany:10:100", "kill-on-invalid-dep": "yes"})


def test_nothing_is_submitted_where_the_rest_is_in_the_queue_or_done() -> None:
    assert plan_submissions(steps(2, 1), {"s0": [0]}, {"s0": {1: "9_1"}, "s1": {0: "10"}}) == []
    assert plan_submissions(steps(2, 1), {"s0": [0, 1], "s1": [0]}, {}) == []


def test_a_lost_last_step_waits_for_what_still_runs() -> None:
    assert shown(plan_submissions(steps(2, 1), {"s0": [0]}, {"s0": {1: "9_1"}})) == [
        ("s1", (0,), {"dependency": "afterok:9_1", "kill-on-invalid-dep": "yes"})
    ]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_each_unit_is_done_in_the_queue_or_submitted(data: st.DataObject) -> None:
    built = steps(*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    done, still_open = {}, {}
    for step in built:
        states = data.draw(st.lists(st.sampled_from(("done", "open", "missing")), min_size=len(step.units), max_size=len(step.units)))
        done[step.name] = [index for index, state in enumerate(states) if state == "done"]
        still_open[step.name] = {index: f"9{step.name}_{index}" for index, state in enumerate(states) if state == "open"}
    plan = {one.step.name: one for one in plan_submissions(built, done, still_open)}
    behind = False
    for step in built:
        tasks = set(plan[step.name].tasks) if step.name in plan else set()
        kept = set() if behind else set(done[step.name]) | set(still_open[step.name])
        assert tasks == set(range(len(step.units))) - kept
        behind = behind or bool(tasks)
    numbers = [one.behind for one in plan.values()]
    assert numbers == [None, *range(len(plan) - 1)][: len(plan)]


def test_at_most_so_many_tasks_at_once() -> None:
    (plan,) = plan_submissions(steps(3), {}, {})
    assert plan.options([], at_once=2) == {"array": "0-2%2"}


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Word → exit code of the commands that hold it; the commands themselves do nothing but make what `product` says."""
    codes: dict[str, int] = {}

    def run(command: list[str], check: bool) -> SimpleNamespace:
        code = next((code for word, code in codes.items() if word in command), 0)
        if command[-1].startswith("product=") and code == 0:
            Path(command[-1].removeprefix("product=")).write_text("made")
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    return codes


def test_a_unit_leaves_word(tmp_path: Path, fails: dict[str, int]) -> None:
    product = tmp_path / "product"
    unit = Unit("a", ("eval", "x"), product=product)
    fails["x"] = 3
    assert run_unit(tmp_path, unit) == 3 and not is_done(tmp_path, unit)
    record = read_record(tmp_path, unit)
    assert record is not None and record["returncode"] == 3
    fails.clear()
    assert run_unit(tmp_path, unit, [f"product={product}"]) == 0 and is_done(tmp_path, unit)
    product.unlink()
    assert not is_done(tmp_path, unit)
    fails["x"] = 4  # submitted once more, it is not taken on trust
    assert run_unit(tmp_path, unit) == 4 and not is_done(tmp_path, unit)


def test_a_signal_is_told_as_a_shell_tells_it(tmp_path: Path, fails: dict[str, int]) -> None:
    fails["x"] = -9
    assert run_unit(tmp_path, Unit("a", ("x",))) == 137


def test_a_record_counts_for_what_it_was_made_from(tmp_path: Path, fails: dict[str, int]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("1")
    unit = Unit("a", ("eval", "x"), settings="s", inputs=(data, tmp_path / "absent"))
    run_unit(tmp_path, unit)
    assert is_done(tmp_path, unit)
    assert not is_done(tmp_path, Unit("a", ("eval", "y"), settings="s", inputs=unit.inputs))
    assert not is_done(tmp_path, Unit("a", ("eval", "x"), settings="t", inputs=unit.inputs))
    data.write_text("22")
    assert not is_done(tmp_path, unit)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2, "returncode": 0}'])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    unit = Unit("a", ("x",))
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "a.json").write_text(content)
    assert read_record(tmp_path, unit) is None


def test_tasks_take_their_own_unit(tmp_path: Path, fails: dict[str, int]) -> None:
    units = [Unit(name, (name,)) for name in "abc"]
    assert own_units(units, {"SLURM_ARRAY_TASK_ID": "1"}) == [units[1]]
    assert own_units(units, {}) == units
    with pytest.raises(UserError, match="--array=0-2"):
        own_units(units, {"SLURM_ARRAY_TASK_ID": "3"})
    fails["b"] = 5
    assert run_units(tmp_path, units) == 5
    assert sorted(path.stem for path in (tmp_path / "units").iterdir()) == ["a", "b", "c"]
    assert json.loads((tmp_path / "units" / "c.json").read_text())["returncode"] == 0
