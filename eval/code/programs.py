"""Problems of other languages, in the shape of MultiPL-E (arXiv 2208.08227) or of HumanEval-X (arXiv 2303.17568).

Tests run in the program's process, and the verdict is its exit status: a program that sets out to can forge it (form: exit-status).
Rows whose toolchain is absent cannot be measured; which these are is said before anything is generated, and in the metrics.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.code.estimator import check_k, pass_metrics
from eval.code.execution import Ran, num_workers, run_each, run_written
from eval.code.measuring import check_code, code_item, code_metrics, code_record, new_tokens, write_completions
from eval.code.options import ProgramsTask
from eval.code.toolchains import Toolchain, for_main_class, toolchain, unit_tests
from eval.engine import Engine, Prompt
from eval.engine.cache import answer_key
from eval.engine.generation import finish_metrics
from eval.harness.sources import read_any
from eval.outcome import Outcome
from eval.rows import Row, each
from eval.sandbox import CommandResult, Form, Sandbox, open_sandbox
from eval.sandbox.commands import COMMAND_LIMITS
from megatron_codemix.errors import UserError
from megatron_codemix.progress import say

VERSION = 2

_CLOSINGS = {"cpp": "\n}", "javascript": "\n}", "go": "\n}", "rust": "\n}", "java": "\n    }"}
"""HumanEval-X gives no stop strings: a function ends where its closing brace stands, which belongs to the program."""

_PYTHON_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

_CPP_HEADERS = ("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream", "map", "cassert")
"""What the published programs take for granted."""


@dataclass(frozen=True)
class Foreign:
    """A problem: `head + completion + tail` is the program."""

    identity: str
    tools: Toolchain
    prompt: str
    head: str
    tail: str
    stop: tuple[str, ...]
    reference: str | None
    """A completion that passes, where the row has one."""
    needs: str | None = None
    """What it needs beside its toolchain, and does not have."""


@dataclass(frozen=True)
class Command:
    """A program and how it is run."""

    source: str
    tools: Toolchain


def foreign_problem(row: Row, task: ProgramsTask) -> Foreign:
    """A row of either shape. Raises UserError for one that is neither, and for a language without a toolchain in the table."""
    if "tests" in row.value:
        return _multipl_e(row, task)
    if "test" in row.value and "task_id" in row.value:
        return _humaneval_x(row, task)
    raise row.problem("is neither MultiPL-E's (name, language, prompt, tests, stop_tokens) nor HumanEval-X's (task_id, prompt, test)")


def _tools(row: Row, language: str) -> Toolchain:
    found = toolchain(language)
    if found is None:
        raise row.problem(f"the language '{language}' is not known here; leave it out with 'languages'")
    return found


def _multipl_e(row: Row, task: ProgramsTask) -> Foreign:
    tools, prompt = _tools(row, row.text("language")), row.text("prompt")
    needs = None
    if tools.language == "java":
        tools = for_main_class(tools, "Problem", task.jar.name if task.jar is not None else None)
        needs = "org.javatuples (option jar)" if "org.javatuples" in prompt and task.jar is None else None
    stop = tuple(row.texts("stop_tokens")) if row.value.get("stop_tokens") else ()
    reference = row.text("canonical_solution") if "canonical_solution" in row.value else None
    identity = row.name(task.id_field or "name")
    return Foreign(identity, tools, prompt, prompt, "\n" + row.text("tests"), stop, reference, needs)


def _humaneval_x(row: Row, task: ProgramsTask) -> Foreign:
    identity = row.name(task.id_field or "task_id")
    tools = _tools(row, row.text("task_id").split("/")[0])
    language, prompt, test = tools.language, row.text("prompt"), row.text("test")
    head, needs = prompt, None
    if language == "cpp":
        head = "".join(f"#include <{name}>\n" for name in _CPP_HEADERS) + prompt
    elif language == "java":
        tools = for_main_class(tools, "Main", task.jar.name if task.jar is not None else None)
    elif language == "rust":
        tools, head = unit_tests(tools), "\nfn main(){ \n } \n" + row.text("declaration") + prompt
    elif language == "go":
        parts = [row.text(key) if key in row.value else "" for key in ("import", "test_setup")]
        head = parts[1] + "\n" + (prompt.replace(parts[0], "") if parts[0] else prompt)
        needs = "github.com/stretchr/testify" if "stretchr/testify" in head + test else None
    reference = row.text("canonical_solution") if "canonical_solution" in row.value else None
    closing = _CLOSINGS.get(language)
    if closing is None:
        return Foreign(identity, tools, prompt, head, "\n" + test, _PYTHON_STOP, reference, needs)
    if reference is not None and closing in reference:
        reference = reference[: reference.index(closing)]
    ending = closing + ("\n}\n" if language == "java" else "\n")
    return Foreign(identity, tools, prompt, head, ending + "\n" + test, (closing,), reference, needs)


def read(task: ProgramsTask) -> list[Foreign]:
    """The problems that can be measured here; the others are named on stderr. Raises UserError where there is none."""
    check_k(task.k, task.samples, task.temperature, str(task.data))
    wanted = {language.lower() for language in task.languages}
    unknown = sorted(one for one in wanted if toolchain(one) is None)
    if unknown:
        raise UserError(f"{task.data}: languages: '{unknown[0]}' is not known here; see docs/code-evaluation.md for those that are")
    rows = [row for row in read_any(task.data) if not wanted or _language_of(row) in {toolchain(one) for one in wanted}]
    problems = each(rows[: task.limit], lambda row: foreign_problem(row, task))
    able = [one for one in problems if not _absent(one)]
    told = ", ".join(f"{language} ({count} problems; {why} is not there)" for (language, why), count in _unable(problems).items())
    if not able:
        raise UserError(f"{task.data}: nothing of it can be measured here: {told or 'no row of these languages'}; install what is missing")
    if told:
        _say_once(f"{task.data}: not measurable here: {told}")
    return able


def _language_of(row: Row) -> Toolchain | None:
    return toolchain(row.text("language") if "language" in row.value else row.text("task_id").split("/")[0])


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    say(text)


def _absent(problem: Foreign) -> str | None:
    return _missing(problem.tools) or problem.needs


@lru_cache(maxsize=64)
def _missing(tools: Toolchain) -> str | None:
    return ", ".join(tools.missing) or None


def _unable(problems: Iterable[Foreign]) -> Counter[tuple[str, str]]:
    return Counter((one.tools.language, why) for one in problems if (why := _absent(one)))


def definition(task: ProgramsTask) -> dict[str, Any]:
    """Whose rules these are."""
    return {"name": "programs", "version": VERSION, "source": "MultiPL-E and HumanEval-X, by the shape of the rows"}


def data_record(task: ProgramsTask) -> list[dict[str, Any]]:
    """The file, and how many problems of it are asked."""
    problems = read(task)
    languages = ", ".join(sorted({one.tools.language for one in problems}))
    return code_record(task.files, len(problems), f"MultiPL-E or HumanEval-X: {languages}")


def check(engine: Engine, task: ProgramsTask, name: str) -> None:
    """That there is room for a prompt, and a sandbox."""
    check_code(engine, task, name)


def measure(engine: Engine, task: ProgramsTask, name: str) -> Outcome:
    """Items as `measure_problems` makes them, with `language`; pass@k by language too."""
    problems = read(task)
    asked = [Prompt(one.prompt, one.identity) for one in problems]
    written = write_completions(engine, [one.stop for one in problems], asked, task, name)
    jobs = [_job(problem, completion.text) for problem, some in zip(problems, written, strict=True) for completion in some]
    ran = run_written(jobs, lambda commands: run_commands(commands, task, name, engine.settings.cache))
    results = iter(ran)
    items: list[dict[str, Any]] = []
    for problem, some in zip(problems, written, strict=True):
        item = code_item(problem.identity, problem.prompt, some, [next(results) for _ in some], problem.identity)
        items.append(item | {"language": problem.tools.language})
    metrics = code_metrics(items, ran, task, incremental=False)
    languages = sorted({item["language"] for item in items})
    for language in languages if len(languages) > 1 else ():
        mine = [(item["id"], item["n"], item["c"]) for item in items if item["language"] == language]
        found = pass_metrics(mine, task.k)
        metrics |= {f"{key}.language={language}": found[key] for key in found if key.removeprefix("pass@").isdecimal()}
    metrics |= {"distinct_programs": len({job for job in jobs if isinstance(job, Command)}), "max_new_tokens": new_tokens(engine, task)}
    return Outcome(metrics | finish_metrics([one for some in written for one in some]), items)


def _job(problem: Foreign, completion: str) -> Command | Ran:
    """The program of a completion, or what there is to say of an empty one."""
    if not completion.strip():
        return Ran.of_nothing(str(Form.EXIT_STATUS), 1)
    return Command(problem.head + completion + problem.tail, problem.tools)


def run_commands(commands: Sequence[Command], task: ProgramsTask, name: str, folder: Path | None) -> list[Ran]:
    """The verdict on every program, in order. Raises UserError where there is no sandbox."""
    jar = {} if task.jar is None else {task.jar.name: task.jar.read_bytes()}
    limits = dataclasses.replace(COMMAND_LIMITS, seconds=task.seconds)

    def one(sandbox: Sandbox, command: Command) -> CommandResult:
        tools = command.tools
        return sandbox.run_command(tools.run, jar | {tools.file: command.source.encode("utf-8")}, tools.compile, limits=limits)

    def run(jobs: Iterable[Command]) -> Iterator[CommandResult]:
        with ThreadPoolExecutor(num_workers()) as pool:
            yield from pool.map(lambda command: one(sandbox, command), jobs)

    with open_sandbox(unsafe=task.unsafe_no_sandbox) as sandbox:
        about = json.dumps([dataclasses.asdict(limits), sandbox.confined])
        keys = [answer_key("command", about, one.source, json.dumps(dataclasses.asdict(one.tools)), *(jar.values())) for one in commands]
        return run_each(commands, keys, run, name, folder)
