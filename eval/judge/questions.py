"""Instructions that two models have answered, read from the row forms in use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.rows import Row, read_each
from megatron_codemix.errors import UserError

FORMS = "'turns' (MT-bench, Vicuna), 'instruction' (Dolly, Alpaca, self-instruct) or 'prompt'"


@dataclass(frozen=True)
class Question:
    """One instruction. id: the row's; category: for figures by category, None where rows have none."""

    id: str
    instruction: str
    context: str
    """What the instruction is about: Dolly's context, Alpaca's input; may be empty."""
    category: str | None
    reference: str | None
    """A right answer, where the row has one; only judge prompts that ask for it see it."""

    @property
    def text(self) -> str:
        """What a judge sees as the question."""
        return f"{self.instruction}\n\n{self.context}" if self.context else self.instruction


def read_questions(path: Path, limit: int | None = None, category_field: str = "category") -> list[Question]:
    """Every row of `path`, in order; of conversations the first turn. Raises UserError with the place of a bad row."""
    found: dict[str, Question] = {}

    def add(row: Row) -> None:
        question = _question(row, category_field)
        if question.id in found:
            raise row.problem(f"a second row with the id '{question.id}'; answers could not be told apart: rename it")
        if not question.instruction.strip():
            raise row.problem("the instruction is empty; mend or remove the row")
        found[question.id] = question

    read_each(path, add, limit)
    return list(found.values())


def _question(row: Row, category_field: str) -> Question:
    value = row.value
    identity = row.name(next((key for key in ("question_id", "id") if key in value), None))
    category = value.get(category_field)
    if category is not None and not isinstance(category, (str, int)):
        raise row.problem(f"'{category_field}' must be a string; mend or remove the row, or name another --category-field")
    label = None if category is None else str(category)
    if "turns" in value:
        return Question(identity, row.texts("turns")[0], "", label, _first(row, "reference"))
    if "instances" in value:
        instruction, instance = row.text("instruction"), _instance(row)
        given = row.check_text(instance.get("input", ""), "'instances[0].input'")
        output = instance.get("output")
        return Question(identity, instruction, given, label, row.check_text(output, "'instances[0].output'") if output else None)
    if "instruction" in value:
        context = next((row.text(key) for key in ("context", "input") if value.get(key)), "")
        answer = next((row.text(key) for key in ("response", "output") if value.get(key)), None)
        return Question(identity, row.text("instruction"), context, label, answer)
    if "prompt" in value:
        return Question(identity, row.text("prompt"), "", label, _first(row, "reference"))
    raise row.problem(f"is no instruction: it has none of {FORMS}; its keys are {', '.join(value) or 'none'}")


def _instance(row: Row) -> dict[str, Any]:
    instances = row.value["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise row.problem("'instances' must be a list of objects {input, output}, and not empty; mend or remove the row")
    return instances[0]


def _first(row: Row, key: str) -> str | None:
    value = row.value.get(key)
    if value is None or value == []:
        return None
    return row.texts(key)[0] if isinstance(value, list) else row.text(key)


def check_references(questions: list[Question], template: str) -> None:
    """Raises UserError where a judge prompt asks for references that rows do not have."""
    missing = [question.id for question in questions if question.reference is None]
    if missing:
        raise UserError(
            f"judge prompt '{template}' shows a reference answer, and {len(missing)} of {len(questions)} rows have none "
            f"(first: id {missing[0]}); choose another --judge-prompt, or rows with references"
        )
