"""MBPP (arXiv 2108.07732), whole or sanitized, asked in either of two ways.

Order of what is run: the program, then the problem's setup code and imports, then its tests (problems 367 and 927 need it so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eval.code.estimator import check_k
from eval.code.incremental import beginnings, continued
from eval.code.measuring import check_code, code_record, measure_problems
from eval.code.options import DOCSTRING_STOP, ORIGINAL_STOP, MbppTask
from eval.code.problems import Problem
from eval.engine import Engine
from eval.harness.sources import read_any
from eval.outcome import Outcome
from eval.rows import Row, each
from eval.sandbox import Checks
from megatron_codemix.errors import UserError

VERSION = 2

SPLITS = {"test": (11, 510), "prompt": (1, 10), "validation": (511, 600), "train": (601, 974), "all": (0, 1 << 62)}
"""Of MBPP's README: first and last task_id."""

SHOTS = (2, 3, 4)
"""The solved problems that the paper's prompt shows."""

SLOW = {123: 60.0}
"""Seconds of problems whose own reference solution needs more than the usual three."""


def number_of(row: Row, task: MbppTask) -> int:
    """The problem's number. Raises UserError."""
    name = row.name(task.id_field)
    if not name.isdecimal():
        raise row.problem(f"its id {name!r} is no number, so its split cannot be told; give the id_field that holds task_id")
    return int(name)


def description(row: Row) -> str:
    """`text` in the whole set, `prompt` in the sanitized one."""
    return row.text("text" if "text" in row.value else "prompt")


def checks_of(row: Row) -> Checks:
    """The tests of a row of MBPP's shape."""
    imports = row.texts("test_imports") if row.value.get("test_imports") else []
    setup = row.value.get("test_setup_code") or ""
    parts = [row.check_text(setup, "'test_setup_code'"), *imports]
    return Checks(tuple(row.texts("test_list")), "\n".join(part for part in parts if part), every=True)


def docstring_prompt(row: Row) -> str:
    """The prompt of InCoder and BigCode: what is wanted and the first test, in a docstring."""
    return f'"""\n{description(row)}\n{row.texts("test_list")[0]}\n"""\n'


def original_question(row: Row) -> str:
    """A problem as the paper's prompt puts it, up to [BEGIN]; three tests, as there."""
    tests = "\n".join(row.texts("test_list")[:3])
    return (
        f"You are an expert Python programmer, and here is your task: {description(row)} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def shots_prompt(rows: Sequence[Row], task: MbppTask) -> str:
    """Three solved problems. Raises UserError where the rows lack one of them."""
    by_number = {number_of(row, task): row for row in rows}
    missing = [number for number in SHOTS if number not in by_number]
    if missing:
        raise UserError(
            f"{task.shots or task.data}: holds no problem {missing[0]}, one of the solved problems of style 'original'; "
            "give a file that does as 'shots'"
        )
    solved = [by_number[number] for number in SHOTS]
    return "".join(f"{original_question(row)}{row.text('code')}\n[DONE]\n\n" for row in solved)


def read(task: MbppTask) -> list[Problem]:
    """Every problem of the split, or every beginning of each. Raises UserError."""
    check_k(task.k, task.samples, task.temperature, str(task.data))
    if task.incremental and task.style == "original":
        raise UserError(f"{task.data}: incremental pass@k is defined for style 'docstring' only; leave one of the two out")
    rows = read_any(task.data)
    first, last = SPLITS[task.split]
    chosen = [row for row in rows if first <= number_of(row, task) <= last][: task.limit]
    if not chosen:
        raise UserError(f"{task.data}: holds no problem from {first} to {last}, the split '{task.split}'; give another split or file")
    before = shots_prompt(rows if task.shots is None else read_any(task.shots), task) if task.style == "original" else ""
    problems = each(chosen, lambda row: _problem(row, task, before).settled(row))
    return [part for one in problems for part in _parts(one)] if task.incremental else problems


def _problem(row: Row, task: MbppTask, before: str) -> Problem:
    identity = row.name(task.id_field)
    code = row.text("code").replace("\r\n", "\n")
    docstring = task.style == "docstring"
    prompt = docstring_prompt(row) if docstring else before + original_question(row)
    usual = DOCSTRING_STOP if docstring else ORIGINAL_STOP
    seconds = SLOW.get(number_of(row, task))
    stop = tuple(usual if task.stop is None else task.stop)
    return Problem(identity, identity, prompt, prompt if docstring else "", "", checks_of(row), code, stop, seconds=seconds)


def _parts(problem: Problem) -> list[Problem]:
    """The beginnings of its solution; the first reveals all up to the function's header, which HumanEval's prompts hold too."""
    lines = problem.reference.splitlines(keepends=True)
    at = next((number for number, line in enumerate(lines) if line.lstrip().startswith("def ")), None)
    header = "" if at is None or at + 1 == len(lines) else "".join(lines[: at + 1])
    told = continued(problem, 0, header)
    told = replace(told, identity=problem.identity)
    return [continued(told, number, revealed) for number, revealed in enumerate(beginnings(told.reference))]


def definition(task: MbppTask) -> dict[str, Any]:
    """Whose rules these are."""
    source = "BigCode evaluation harness, after InCoder" if task.style == "docstring" else "arXiv 2108.07732, 3-shot"
    name = f"mbpp_{task.style}" + ("_incremental" if task.incremental else "")
    return {"name": name, "version": VERSION, "source": source + (", arXiv 2402.05783" if task.incremental else "")}


def data_record(task: MbppTask) -> list[dict[str, Any]]:
    """The files, and how many problems of them are asked."""
    return code_record(task.files, len({one.cluster for one in read(task)}), "mbpp")


def check(engine: Engine, task: MbppTask, name: str) -> None:
    """That there is room for a prompt, and a sandbox."""
    check_code(engine, task, name)


def measure(engine: Engine, task: MbppTask, name: str) -> Outcome:
    """Items as `measure_problems` makes them."""
    return measure_problems(engine, read(task), task, name, task.incremental)
