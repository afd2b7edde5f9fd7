"""Minimal pairs: two texts that differ in one thing; the model should find the good one more likely.

As BLiMP is scored (arXiv 1912.00582): the log-probability of the whole text, behind the start token. Pairs of code, of which
one is right (a name that exists, a bracket that closes), are the same thing; a text before both can be given.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval.engine import Engine
from eval.outcome import Outcome
from eval.rows import Row, read_each
from eval.tasks.choices import choice_item, choice_metrics
from eval.tasks.continuation import check_labels, group_metrics, groups_of
from eval.tasks.standard_options import MinimalPairsTask

VERSION = 1


@dataclass(frozen=True)
class Pair:
    """prefix: stands before both and is not scored; may be empty."""

    row: Row
    prefix: str
    good: str
    bad: str


def read(task: MinimalPairsTask) -> list[Pair]:
    """Every pair. Raises UserError for bad rows."""

    def read_pair(row: Row) -> Pair:
        check_labels(row, task.id_field, task.group_fields)
        prefix = "" if task.prefix_field is None else row.text(task.prefix_field)
        pair = Pair(row, prefix, row.text(task.good_field), row.text(task.bad_field))
        if not pair.good or not pair.bad or pair.good == pair.bad:
            raise row.problem("the two texts must differ, and neither may be empty; mend or remove the row")
        return pair

    return read_each(task.data, read_pair, task.limit)


def measure(engine: Engine, task: MinimalPairsTask, name: str) -> Outcome:
    """Items as of multiple choice, gold 0, with the fields that group them."""
    pairs = read(task)
    scores = engine.score(engine.encode_pairs([(pair.prefix, text) for pair in pairs for text in (pair.good, pair.bad)]), name)
    items = []
    for at, pair in enumerate(pairs):
        good, bad = scores[2 * at : 2 * at + 2]
        scored = choice_item([pair.good, pair.bad], 0, [good.log_probability, bad.log_probability])
        items.append(
            {
                "id": pair.row.name(task.id_field),
                "input": pair.prefix,
                "output": (pair.good, pair.bad)[scored["chosen"]],
                "choices": [pair.good, pair.bad],
                **scored,
                "tokens": [len(one.token_log_probabilities) for one in (good, bad)],
                "cut": int(good.cut or bad.cut),
                **groups_of(pair.row, task.group_fields),
            }
        )
    metrics = choice_metrics(items)
    metrics |= {"pairs": metrics.pop("questions"), "cut_contexts": sum(item["cut"] for item in items)}
    return Outcome(metrics | group_metrics(items, task.group_fields, "accuracy", "correct"), items)
