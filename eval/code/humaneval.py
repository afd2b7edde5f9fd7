"""HumanEval (arXiv 2107.03374): a function is continued behind its docstring, and called by hidden tests.

What the reference harness runs, prompt + completion + test + check(entry_point), is split: the completed prompt is the program,
the tests run elsewhere (eval.sandbox) and call `entry_point`. Other functions that a prompt defines and its tests use come from the
prompt, not from the program.
"""

from __future__ import annotations

import ast
from typing import Any

from eval.code.estimator import check_k
from eval.code.incremental import beginnings, continued
from eval.code.measuring import check_code, code_record, measure_problems
from eval.code.options import HumanEvalTask
from eval.code.problems import Problem
from eval.engine import Engine
from eval.harness.sources import read_any
from eval.outcome import Outcome
from eval.rows import Row, each
from eval.sandbox import Checks

VERSION = 2


def checks_of(row: Row) -> Checks:
    """The tests of a row of HumanEval's shape.

    Beside the function that is asked for they may use what the prompt defines. A prompt that is no Python alone (a header without a
    docstring) is taken with its reference solution.
    """
    entry = row.text("entry_point")
    if not entry.isidentifier():
        raise row.problem(f"'entry_point' {entry!r} is no name of a function; mend or remove the row")
    prompt = row.text("prompt")
    try:
        ast.parse(prompt)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        prompt += row.text("canonical_solution")
    return Checks((row.text("test"), f"check({entry})"), prompt, (entry,), every=True)


def problem_of(row: Row, task: HumanEvalTask) -> Problem:
    """A row as a problem. Raises UserError for a missing or wrong field."""
    prompt = row.text("prompt")
    prompt = prompt.strip() if task.strip_prompt else prompt
    identity = row.name(task.id_field)
    reference = row.text("canonical_solution")
    if task.strip_prompt and not reference.startswith("\n"):
        reference = "\n" + reference
    return Problem(identity, identity, prompt, prompt, "", checks_of(row), reference, tuple(task.stop)).settled(row)


def read(task: HumanEvalTask) -> list[Problem]:
    """Every problem, or for incremental pass@k every beginning of every problem. Raises UserError."""
    check_k(task.k, task.samples, task.temperature, str(task.data))
    problems = each(read_any(task.data, task.limit), lambda row: problem_of(row, task))
    if not task.incremental:
        return problems
    return [continued(one, number, revealed) for one in problems for number, revealed in enumerate(beginnings(one.reference))]


def definition(task: HumanEvalTask) -> dict[str, Any]:
    """Whose rules these are."""
    name = "humaneval_incremental" if task.incremental else "humaneval"
    source = "arXiv 2402.05783 over openai/human-eval" if task.incremental else "openai/human-eval"
    return {"name": name, "version": VERSION, "source": source}


def data_record(task: HumanEvalTask) -> list[dict[str, Any]]:
    """The file, and how many problems of it there are."""
    return code_record(task.files, len({one.cluster for one in read(task)}), "human-eval")


def check(engine: Engine, task: HumanEvalTask, name: str) -> None:
    """That there is room for a prompt, and a sandbox."""
    check_code(engine, task, name)


def measure(engine: Engine, task: HumanEvalTask, name: str) -> Outcome:
    """Items as `measure_problems` makes them."""
    return measure_problems(engine, read(task), task, name, task.incremental)
