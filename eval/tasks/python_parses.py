"""Share of generated Python that parses: prompt + greedy completion, given to CPython's own parser.

The prompt alone is parsed too: that share is what a model that writes nothing would reach.
"""

from __future__ import annotations

from collections import Counter

from eval.engine import Completion, Decoding, Engine, Prompt
from eval.engine.generation import finish_metrics
from eval.outcome import Metrics, Outcome, mean
from eval.rows import read_each
from eval.tasks.options import PythonParsesTask
from eval.tasks.parsing import REASONS, PythonParser
from megatron_codemix.errors import UserError

VERSION = 2


def first_lines(text: str, count: int) -> str | None:
    """The first `count` lines with their newline; None where nothing follows them."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[:count]) if len(lines) > count else None


def read(task: PythonParsesTask) -> tuple[list[tuple[str, str]], int]:
    """(id, prompt) of every row that gives one, and how many documents were too short to. Raises UserError for a bad row."""
    field = task.text_field if task.prompt_field is None else task.prompt_field
    texts = read_each(task.data, lambda row: (row.name(task.id_field), row.text(field)), task.limit)
    if task.prompt_field is not None:
        return texts, 0
    found = [(identity, first_lines(text, task.prompt_lines)) for identity, text in texts]
    prompts = [(identity, text) for identity, text in found if text is not None]
    if not prompts:
        raise UserError(f"{task.data}: no document has more than prompt_lines {task.prompt_lines} lines; give a smaller number")
    return prompts, len(found) - len(prompts)


def program(prompt: str, completion: Completion, drop_unfinished_line: bool) -> str:
    """What is parsed: prompt + completion, without a last line that only max_new_tokens ended."""
    text = completion.text
    if drop_unfinished_line and completion.finish == "length":
        text = text[: text.rfind("\n") + 1]
    return prompt + text


def measure(engine: Engine, task: PythonParsesTask, name: str) -> Outcome:
    """An item is {id, input, output, score, parses, reason, prompt_parses, finish, tokens, cut_prompt}."""
    prompts, short = read(task)
    asked = [Prompt(text, identity) for identity, text in prompts]
    completions = [made for (made,) in engine.generate(asked, Decoding(task.max_new_tokens, tuple(task.stop)), name)]
    items = []
    with PythonParser(task.max_bytes, task.max_seconds) as parser:
        for (identity, prompt), completion in zip(prompts, completions, strict=True):
            reason = parser.verdict(program(prompt, completion, task.drop_unfinished_line))
            items.append(
                {
                    "id": identity,
                    "input": prompt,
                    "output": completion.text,
                    "score": int(reason == "parses"),
                    "parses": int(reason == "parses"),
                    "reason": reason,
                    "prompt_parses": int(parser.verdict(prompt) == "parses"),
                    "finish": completion.finish,
                    "tokens": completion.tokens,
                    "cut_prompt": completion.cut_prompt,
                }
            )
    reasons = Counter(item["reason"] for item in items)
    metrics: Metrics = {
        "parse_share": mean([item["parses"] for item in items]),
        "prompt_parse_share": mean([item["prompt_parses"] for item in items]),
        "prompts": len(items),
        "short_documents": short,
    }
    metrics |= {f"reason_{reason.replace(' ', '_')}": reasons[reason] for reason in REASONS if reasons[reason]}
    return Outcome(metrics | finish_metrics(completions), items)
