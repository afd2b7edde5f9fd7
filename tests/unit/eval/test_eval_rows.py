"""Bad rows of a file are told together, whatever is wrong with each."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.code.samples import read_samples
from eval.harness.sources import load_rows
from eval.judge.answers import read_answers
from eval.rows import MOST_TOLD, read_each, read_rows
from eval.tasks.multiple_choice import read
from eval.tasks.options import MultipleChoiceTask
from megatron_codemix.errors import UserError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def told(caught: pytest.ExceptionInfo[UserError], path: Path) -> list[str]:
    """LINE of each problem."""
    return [problem.removeprefix(f"{path}:").partition(":")[0] for problem in caught.value.problems]


def test_lines_that_are_no_rows_and_rows_that_are_no_questions(tmp_path):
    good, short = '{"query": "a", "choices": ["x", "y"], "gold": 0}', '{"query": "a", "choices": ["x"], "gold": 0}'
    path = write(tmp_path / "q.jsonl", good, short, "no json", "", good, "[1]", '{"query": "a"}')
    with pytest.raises(UserError) as caught:
        read(MultipleChoiceTask(kind="multiple_choice", data=path))
    assert told(caught, path) == ["2", "3", "6", "7"]
    with pytest.raises(UserError) as caught:
        read(MultipleChoiceTask(kind="multiple_choice", data=path, limit=3))
    assert told(caught, path) == ["2", "3"], "the limit counts bad rows too"
    assert len(read(MultipleChoiceTask(kind="multiple_choice", data=path, limit=1))) == 1


def test_many_are_counted(tmp_path):
    path = write(tmp_path / "q.jsonl", *['{"text": 3}'] * 1234)
    with pytest.raises(UserError) as caught:
        read_each(path, lambda row: row.text("text"))
    assert len(caught.value.problems) == MOST_TOLD + 1
    assert caught.value.problems[-1] == f"{path}: 1,224 more rows are bad; mend those above first"


def test_a_damaged_end_hides_nothing_and_no_row_is_lost(tmp_path):
    path = write(tmp_path / "q.jsonl", '{"a": 1}', '{"a": 2}')
    assert [row.value["a"] for row in read_rows(path)] == [1, 2]
    assert read_each(path, lambda row: None) == [None, None], "a row of which nothing is made is no empty file"


def test_of_standard_tasks_samples_and_answers_too(tmp_path):
    hub = write(
        tmp_path / "piqa.jsonl",
        *['{"goal": "g", "sol1": "a", "sol2": "b", "label": LABEL}'.replace("LABEL", str(label)) for label in (0, 2, 1, 7)],
    )
    with pytest.raises(UserError) as caught:
        load_rows(hub, "piqa")
    assert told(caught, hub) == ["2", "4"]
    rendered = write(
        tmp_path / "r.jsonl", *['{"query": "q", "choices": ["x", "y"], "gold": GOLD}'.replace("GOLD", str(gold)) for gold in (0, 5, 1, 6)]
    )
    with pytest.raises(UserError) as caught:
        load_rows(rendered, "social_iqa")
    assert told(caught, rendered) == ["2", "4"]
    samples = write(tmp_path / "s.jsonl", '{"task_id": "a"}', '{"task_id": "b", "completion": ""}')
    with pytest.raises(UserError) as caught:
        read_samples(samples, {}, tmp_path / "p.jsonl")
    assert told(caught, samples) == ["1", "2"]
    answers = write(tmp_path / "a.jsonl", '{"id": 1}', '{"id": 2, "output": "x"}', '{"id": 2, "output": "y"}')
    with pytest.raises(UserError) as caught:
        read_answers(answers, [])
    assert told(caught, answers) == ["1", "3"]
