"""Infilling of HumanEval's reference solutions (arXiv 2204.05999 single and multiple lines, 2207.14255 random spans).

The gaps are made from HumanEval itself. Lines: each that is not blank (1,033), and each run that begins and ends with such a line
(5,815): the published sets. Random spans: `spans_per_problem` of each solution, both ends drawn uniformly among its characters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from eval.code.estimator import check_k
from eval.code.fim import fim_ids, fim_symbols
from eval.code.humaneval import checks_of
from eval.code.measuring import check_code, code_record, measure_problems, new_tokens
from eval.code.options import InfillingTask
from eval.code.problems import Problem
from eval.engine import Engine, Prompt
from eval.harness.sources import read_any
from eval.outcome import Outcome
from eval.rows import Row, each
from eval.sandbox import Checks

VERSION = 2

_DRAWS = 50
"""Tries for each random span to find one that is not there yet."""


def spans_of(body: str, task: InfillingTask, identity: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, stop) of every gap in a solution; `body[start:stop]` is what is left out, with the newline that ends a line."""
    if task.spans == "random_span":
        yield from _random_spans(body, task, identity)
        return
    ends, lines, at = [], [], 0
    for line in body.splitlines(keepends=True):
        if line.strip():
            lines.append(at)
            ends.append(at + len(line))
        at += len(line)
    for first, start in enumerate(lines):
        for last in range(first, len(lines) if task.spans == "multi_line" else first + 1):
            name = f"L{first}" if task.spans == "single_line" else f"L{first}_L{last}"
            yield name, start, ends[last]


def _random_spans(body: str, task: InfillingTask, identity: str) -> Iterator[tuple[str, int, int]]:
    found: dict[tuple[int, int], None] = {}
    for number in range(task.spans_per_problem):
        draws = random.Random(f"{task.spans_seed}\0{identity}\0{number}")
        for _ in range(_DRAWS):
            start, stop = sorted((draws.randrange(len(body) + 1), draws.randrange(len(body) + 1)))
            if start < stop and body[start:stop].strip() and (start, stop) not in found:
                found[start, stop] = None
                yield str(number), start, stop
                break


def problems_of(row: Row, task: InfillingTask) -> Iterator[Problem]:
    """The gaps of one row. Raises UserError for a missing or wrong field."""
    prompt, body, identity = row.text("prompt"), row.text("canonical_solution"), row.name(task.id_field)
    checks = checks_of(row)
    if "suffix" not in row.value:
        for name, start, end in spans_of(body, task, identity):
            gap = (prompt + body[:start], body[start:end], body[end:])
            yield _problem(f"{identity}/{name}", identity, gap, checks, task).settled(row)
        return
    # The published files: prompt and suffix stand around the gap. Such a prompt may end inside of a statement, so what tests need of it
    # comes from the reference solution.
    suffix = row.text("suffix")
    whole = replace(checks, setup=prompt + body + suffix)
    yield _problem(identity, cluster_of(identity), (prompt, body, suffix), whole, task).settled(row)


def _problem(identity: str, cluster: str, gap: tuple[str, str, str], checks: Checks, task: InfillingTask) -> Problem:
    """gap: what stands before it, in it and behind it. A single line ends before its newline, which the program has anyway."""
    before, reference, behind = gap
    tail = behind
    if task.spans == "single_line" and reference.endswith("\n"):
        reference, tail = reference[:-1], "\n" + behind
    usual = ("\n",) if task.spans == "single_line" else ()
    stop = usual if task.stop is None else tuple(task.stop)
    return Problem(identity, cluster, before, before, tail, checks, reference, stop, behind)


def cluster_of(identity: str) -> str:
    """SingleLineInfilling/HumanEval/3/L0 → HumanEval/3."""
    parts = identity.split("/")
    return "/".join(parts[1:-1]) if len(parts) > 3 else identity


def read(task: InfillingTask) -> list[Problem]:
    """Every gap of every problem. Raises UserError."""
    check_k(task.k, task.samples, task.temperature, str(task.data))
    return [problem for some in each(read_any(task.data, task.limit), lambda row: list(problems_of(row, task))) for problem in some]


def definition(task: InfillingTask) -> dict[str, Any]:
    """Whose rules these are."""
    source = "arXiv 2207.14255" if task.spans == "random_span" else "arXiv 2204.05999 and 2207.14255"
    return {"name": f"humaneval_infilling_{task.spans}_{task.order}", "version": VERSION, "source": source}


def data_record(task: InfillingTask) -> list[dict[str, Any]]:
    """The file, and how many problems of it there are."""
    return code_record(task.files, len({one.cluster for one in read(task)}), "human-eval")


def check(engine: Engine, task: InfillingTask, name: str) -> None:
    """That the model has symbols for infilling, that there is room for a prompt, and a sandbox."""
    fim_symbols(engine, name)
    check_code(engine, task, name)


def prompts_of(engine: Engine, problems: list[Problem], task: InfillingTask, name: str) -> tuple[list[Prompt], list[bool]]:
    """Prompts as token ids, and which of them were cut."""
    symbols = fim_symbols(engine, name)
    room = engine.context - new_tokens(engine, task) - 1
    before = engine.encode([one.prompt for one in problems])
    behind = engine.encode([one.suffix or "" for one in problems])
    made = [fim_ids(symbols, left, right, task.order, room) for left, right in zip(before, behind, strict=True)]
    prompts = [Prompt(one.prompt, one.identity, ids) for one, (ids, _) in zip(problems, made, strict=True)]
    return prompts, [cut for _, cut in made]


def measure(engine: Engine, task: InfillingTask, name: str) -> Outcome:
    """Items as `measure_problems` makes them, with `suffix`."""
    problems = read(task)
    prompts, cut = prompts_of(engine, problems, task, name)
    outcome = measure_problems(engine, problems, task, name, prompts=prompts)
    for item, lost in zip(outcome.items, cut, strict=True):
        item["cut"] = int(lost)
    return Outcome(outcome.metrics | {"problems": len({one.cluster for one in problems}), "cut_prompts": sum(cut)}, outcome.items)
