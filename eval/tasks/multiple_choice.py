"""Multiple choice by log-likelihood: which choice does the model find most likely behind the query?

A row is {query, choices, gold}: the choices stand behind one query. A row {context_options, continuation, gold}
(partial evaluation, as in WinoGrande) scores one continuation behind each context.
The tokens that are scored are those of query + delimiter + choice behind what *all* choices of the row share with
the query's own tokens: where a tokenizer merges across the boundary, every choice is charged from the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.engine import Continuation, Engine
from eval.outcome import Outcome
from eval.rows import Row, read_each
from eval.tasks.choices import choice_item, choice_metrics
from eval.tasks.options import MultipleChoiceTask

VERSION = 2


@dataclass(frozen=True)
class Question:
    """A row in one form: `contexts[i] + delimiter + continuations[i]` is choice i."""

    row: Row
    contexts: list[str]
    continuations: list[str]
    gold: int


def read_question(row: Row, task: MultipleChoiceTask) -> Question:
    """Raises UserError with the row's place for missing or wrong fields."""
    if task.contexts_field in row.value:
        contexts = row.texts(task.contexts_field)
        continuations = [row.text(task.continuation_field)] * len(contexts)
    else:
        continuations = row.texts(task.choices_field)
        contexts = [row.text(task.query_field)] * len(continuations)
    row.name(task.id_field)  # told here if it is no text, not when all is measured
    gold = row.value.get(task.gold_field)
    if len(contexts) < 2:
        raise row.problem("has one choice only; a question needs at least two")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(contexts):
        raise row.problem(f"'{task.gold_field}' must be a choice's index from 0 to {len(contexts) - 1}, not {gold!r}")
    if not all(continuations):
        raise row.problem("a choice is empty, so it has no likelihood; mend or remove the row")
    return Question(row, contexts, continuations, gold)


def make_requests(engine: Engine, question: Question, delimiter: str) -> tuple[list[Continuation], bool]:
    """The question's choices, in order; and whether a context was cut on its left to fit, for all its choices alike.

    Spaces at a context's end move to the continuation, where most tokenizers keep them.
    """
    whole = [context + delimiter + choice for context, choice in zip(question.contexts, question.continuations, strict=True)]
    bare = list(dict.fromkeys(context.rstrip() for context in question.contexts))
    encoded = engine.encode(whole + bare)
    context_tokens = dict(zip(bare, encoded[len(whole) :], strict=True))
    if not all(encoded[: len(whole)]):
        raise question.row.problem("the model's tokenizer makes no token of a choice; mend or remove the row")
    contexts, sizes = {}, {}
    for context in bare:
        members = [ids for ids, text in zip(encoded, question.contexts) if text.rstrip() == context]
        shared = min(_common_prefix(context_tokens[context], member) for member in members)
        # A choice that adds no token of its own (it merged into the context whole) is charged its last one.
        sizes[context] = shared = min(shared, *(len(member) - 1 for member in members))
        room = engine.context + 1 - max(len(member) - shared for member in members)
        if room < 1:
            raise question.row.problem(f"a choice is longer than the model's context of {engine.context} tokens; remove the row")
        contexts[context] = (engine.start_id, *members[0][:shared])[-room:]
    requests = [Continuation(contexts[text.rstrip()], tuple(ids[sizes[text.rstrip()] :])) for ids, text in zip(encoded, question.contexts)]
    return requests, any(len(contexts[context]) <= sizes[context] for context in bare)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(np.array(one[:length]) != np.array(other[:length]))
    return int(different[0]) if len(different) else length


def read(task: MultipleChoiceTask) -> list[Question]:
    """Every question. Raises UserError for bad rows."""
    return read_each(task.data, lambda row: read_question(row, task), task.limit)


def measure(engine: Engine, task: MultipleChoiceTask, name: str) -> Outcome:
    """An item is {id, input, output, choices, tokens, cut} and what `choices.choice_item` makes of its log-probabilities."""
    questions = read(task)
    made = [make_requests(engine, question, task.delimiter) for question in questions]
    scores = iter(engine.score([request for requests, _ in made for request in requests], name))
    items = []
    for question, (requests, cut) in zip(questions, made, strict=True):
        found = [next(scores) for _ in requests]
        scored = choice_item(question.continuations, question.gold, [one.log_probability for one in found])
        partial = len(set(question.contexts)) > 1  # the choices stand in the contexts
        shown = question.contexts if partial else question.continuations
        items.append(
            {
                "id": question.row.name(task.id_field),
                "input": question.continuations[0] if partial else question.contexts[0],
                "output": shown[scored["chosen"]],
                "choices": shown,
                **scored,
                "tokens": [len(one.token_log_probabilities) for one in found],
                "cut": int(cut),
            }
        )
    return Outcome(choice_metrics(items) | {"cut_contexts": sum(item["cut"] for item in items)}, items)
