"""The answers of one side: a file of rows {id, output}, or what a model directory writes (`eval.judge.writing`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.judge.questions import Question
from eval.rows import Row, read_each
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file


@dataclass(frozen=True)
class Side:
    """One of the two: record: what judge.json says of it; outputs: question id → answer."""

    record: dict[str, Any]
    outputs: dict[str, str]


def read_answers(path: Path, questions: Sequence[Question]) -> Side:
    """A jsonl file of answers; rows of other questions are passed over. Raises UserError for answers that are not there."""
    outputs: dict[str, str] = {}

    def add(row: Row) -> None:
        identity = row.name(next((key for key in ("question_id", "id") if key in row.value), None))
        if identity in outputs:
            raise row.problem(f"a second answer with the id '{identity}'; keep one of them")
        outputs[identity] = row.text("output")

    read_each(path, add)
    missing = [question.id for question in questions if question.id not in outputs]
    if missing:
        shown = ", ".join(missing[:3])
        raise UserError(
            f"{path}: holds no answer to {len(missing)} of {len(questions)} prompts (ids {shown}{' …' if len(missing) > 3 else ''}); "
            "its rows are {id, output}, ids as in --prompts"
        )
    record = {"path": str(path), "kind": "answers", "sha256": sha256_file(path)}
    return Side(record, {question.id: outputs[question.id] for question in questions})
