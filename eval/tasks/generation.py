"""Greedy continuation of prompts, compared with right answers where there are any."""

from __future__ import annotations

from typing import Any

from eval.engine import Decoding, Engine, Prompt
from eval.engine.generation import finish_metrics
from eval.outcome import Metrics, Outcome
from eval.rows import Row, read_each
from eval.tasks.choices import share_metrics
from eval.tasks.options import GenerationTask

VERSION = 2


def _references(row: Row, key: str) -> list[str] | None:
    value = row.value.get(key)
    if value is None:
        return None
    return row.texts(key) if isinstance(value, list) else [row.text(key)]


def read(task: GenerationTask) -> list[tuple[str, str, list[str] | None]]:
    """(id, prompt, right answers if given) of every row. Raises UserError for bad rows."""
    return read_each(
        task.data,
        lambda row: (row.name(task.id_field), row.text(task.prompt_field), _references(row, task.reference_field)),
        task.limit,
    )


def measure(engine: Engine, task: GenerationTask, name: str) -> Outcome:
    """An item is {id, input, output, finish, tokens, cut_prompt}, and where a reference is given {references, score, exact_match}."""
    names, prompts, references = zip(*read(task), strict=True)
    asked = [Prompt(text, identity) for identity, text in zip(names, prompts, strict=True)]
    completions = [made for (made,) in engine.generate(asked, Decoding(task.max_new_tokens, tuple(task.stop)), name)]
    items: list[dict[str, Any]] = []
    for identity, prompt, completion, right in zip(names, asked, completions, references, strict=True):
        item: dict[str, Any] = {
            "id": identity,
            "input": prompt.text,
            "output": completion.text,
            "score": None,
            "finish": completion.finish,
            "tokens": completion.tokens,
            "cut_prompt": completion.cut_prompt,
        }
        if right is not None:
            said = completion.text.strip() if task.strip else completion.text
            equal = int(said in [text.strip() if task.strip else text for text in right])
            item |= {"references": right, "score": equal, "exact_match": equal}
        items.append(item)
    compared = [item["exact_match"] for item in items if "exact_match" in item]
    metrics: Metrics = {"prompts": len(items), "references": len(compared)}
    if compared:
        metrics = share_metrics("exact_match", compared) | metrics
    return Outcome(metrics | finish_metrics(completions), items)
