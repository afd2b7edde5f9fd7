"""One right continuation behind each context, as in llm-foundry's language-modelling rows of BIG-bench and LAMBADA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.engine import Engine
from eval.outcome import Metrics, Outcome, mean
from eval.rows import Row, read_each
from eval.tasks.choices import continuation_metrics
from eval.tasks.standard_options import ContinuationTask

VERSION = 1


def read(task: ContinuationTask) -> list[tuple[Row, str, str]]:
    """(row, context, what follows it). Raises UserError for bad rows."""

    def pair(row: Row) -> tuple[Row, str, str]:
        check_labels(row, task.id_field, task.group_fields)
        context, continuation = row.text(task.context_field), row.text(task.continuation_field)
        if not continuation.strip():
            raise row.problem(f"'{task.continuation_field}' is empty, so it has no likelihood; mend or remove the row")
        spaced = continuation.startswith(" ") or context.endswith(" ") or not context
        return row, context, continuation if spaced else task.delimiter + continuation

    return read_each(task.data, pair, task.limit)


def measure(engine: Engine, task: ContinuationTask, name: str) -> Outcome:
    """An item is {id, input, output, score, correct, log_probability (nats), gold_log_probability_per_byte, bytes, tokens, cut}."""
    rows = read(task)
    scores = engine.score(engine.encode_pairs([(context, continuation) for _, context, continuation in rows]), name)
    items: list[dict[str, Any]] = []
    for (row, context, continuation), found in zip(rows, scores, strict=True):
        num_bytes = len(continuation.strip().encode("utf-8"))
        item = {
            "id": row.name(task.id_field),
            "input": context,
            "output": continuation,
            "score": int(found.greedy),
            "correct": int(found.greedy),
            "log_probability": found.log_probability,
            "gold_log_probability_per_byte": found.log_probability / num_bytes,
            "bytes": num_bytes,
            "tokens": len(found.token_log_probabilities),
            "cut": int(found.cut),
        }
        items.append(item | groups_of(row, task.group_fields))
    return Outcome(continuation_metrics(items) | group_metrics(items, task.group_fields, "accuracy", "correct"), items)


def groups_of(row: Row, fields: Sequence[str]) -> dict[str, str]:
    """The fields of a row by which figures are grouped, as text; those that the row has. Raises UserError for one that is no text."""
    return {field: row.check_text(str(value), f"'{field}'") for field in fields if (value := row.value.get(field)) is not None}


def check_labels(row: Row, id_field: str | None, fields: Sequence[str]) -> None:
    """Raises UserError where an item's name or groups are no text: before anything is measured."""
    row.name(id_field)
    groups_of(row, fields)


def group_metrics(items: Sequence[dict[str, Any]], fields: Sequence[str], metric: str, key: str) -> Metrics:
    """The mean of `key` by every value of every field: accuracy.UID=anaphor_gender_agreement."""
    found: Metrics = {}
    for field in fields:
        values = sorted({item[field] for item in items if field in item})
        for value in values if len(values) > 1 else ():
            found[f"{metric}.{field}={value}"] = mean([item[key] for item in items if item.get(field) == value])
    return found
