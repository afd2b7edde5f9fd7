"""What can be measured: the kinds of task, their options, and how TASKS.yaml is read (docs/evaluation.md)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from eval.tasks.kinds import KINDS, options_class
from megatron_codemix.config import load_config, parse_config
from megatron_codemix.config.section import Count, FilePath, Section
from megatron_codemix.errors import UserError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
"""Names become files: letters, digits, '.', '_', '-'."""


# fmt: off
ITEM_KEYS = frozenset((
    "id", "cluster", "input", "output", "choices", "score", "correct", "correct_norm", "gold", "chosen", "chosen_norm", "right", "margin",
    "margin_norm", "log_probability", "log_probabilities", "gold_log_probability_per_byte", "nats", "bytes", "tokens", "cut",
))
# fmt: on
"""What items of the kinds with `group_fields` hold of their own."""


def _of_rows(keys: list[str]) -> list[str]:
    own = sorted(ITEM_KEYS.intersection(keys))
    if own:
        raise ValueError(f"'{own[0]}' is a key that every item has already; give the rows' field another name")
    return keys


GroupFields = Annotated[list[str], AfterValidator(_of_rows)]
"""Keys of rows, copied into their items."""


class TaskOptions(Section):
    """What every kind of task has."""

    kind: str
    """Which kind of task it is."""
    limit: Count | None = None
    """Use the first so many rows; null: all."""

    @property
    def files(self) -> list[Path]:
        """The files that decide the task's numbers."""
        raise NotImplementedError


class DataTask(TaskOptions):
    """A task whose rows lie in one file."""

    data: FilePath
    """Rows: .jsonl, .jsonl.gz or .jsonl.zst."""
    id_field: str | None = None
    """Key of an item's identity; default: 'id' where a row has it, else the line number."""

    @property
    def files(self) -> list[Path]:
        """The file of the rows."""
        return [self.data]


class BitsPerByteTask(DataTask):
    """Compression of whole documents."""

    kind: Literal["bits_per_byte"]
    """bits_per_byte."""
    text_field: str = "text"
    """Key of the document's text."""
    group_fields: GroupFields = ["language", "domain"]
    """Keys by whose values bits per byte is reported too, where rows have them."""


class MultipleChoiceTask(DataTask):
    """The choice with the highest log-likelihood behind its query."""

    kind: Literal["multiple_choice"]
    """multiple_choice."""
    query_field: str = "query"
    """Key of the text before the choices."""
    choices_field: str = "choices"
    """Key of the list of choices (at least two strings)."""
    gold_field: str = "gold"
    """Key of the right choice's index, from 0."""
    contexts_field: str = "context_options"
    """Key of a list of contexts; a row that has it scores `continuation_field` behind each of them instead."""
    continuation_field: str = "continuation"
    """Key of the one continuation of a row with contexts."""
    delimiter: str = " "
    """Stands between query and choice; it is part of what is predicted, not of the choice's bytes."""


class GenerationTask(DataTask):
    """Greedy continuation of prompts."""

    kind: Literal["generation"]
    """generation."""
    prompt_field: str = "prompt"
    """Key of the prompt."""
    reference_field: str = "reference"
    """Key of the right answer, or of a list of right ones; exact match is reported over the rows that have it."""
    max_new_tokens: Count = 64
    """Tokens after which generation ends."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Generation ends before the first of these strings."""
    strip: bool = True
    """Take whitespace off both ends of completion and reference before they are compared."""


class PythonParsesTask(DataTask):
    """Share of greedily continued Python that parses; it is parsed, never run."""

    kind: Literal["python_parses"]
    """python_parses."""
    text_field: str = "text"
    """Key of a held-out Python file; its first `prompt_lines` lines are the prompt."""
    prompt_lines: Count = 10
    """Lines of the document that the model is given; shorter documents are passed over and counted."""
    prompt_field: str | None = None
    """Key of a prompt; given: text_field and prompt_lines are not used."""
    max_new_tokens: Count = 128
    """Tokens after which generation ends."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Generation ends before the first of these strings."""
    drop_unfinished_line: bool = True
    """Where max_new_tokens cut the completion, leave out its last, unfinished line before parsing."""
    max_bytes: Count = 1_000_000
    """Longer programs count as not parsing ('too long')."""
    max_seconds: float = Field(default=5.0, gt=0.0)
    """Programs that take longer to parse count as not parsing ('timeout')."""


Task = TaskOptions
"""Any kind's options."""


class TasksFile(Section):
    """TASKS.yaml: one mapping, name → task."""

    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name → kind, data and the kind's options; names become files: letters, digits, '.', '_', '-'."""

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Every task's own mistakes, so that they are reported with all others."""
        tasks = raw.get("tasks")
        problems: list[str] = []
        for name, options in tasks.items() if isinstance(tasks, dict) else ():
            try:
                _parse_task(str(name), options)
            except UserError as error:
                problems += error.problems
        return problems


def _parse_task(name: str, options: Any) -> Task:
    where = f"tasks.{name}"
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"{where}: the name becomes a file; use letters, digits, '.', '_', '-' only, 200 at most")
    if not isinstance(options, dict):
        raise UserError(f"{where}: must be a mapping with 'kind' and 'data'; see docs/evaluation.md")
    kind = options.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "one of: " + ", ".join(KINDS)
        raise UserError(f"{where}.kind: unknown kind {kind!r}; {hint}" if "kind" in options else f"{where}.kind: required; {hint}")
    broken = sorted(_broken_texts(options, where))
    if broken:
        raise UserError(*(f"{place}: holds a lone surrogate, which is no Unicode text; mend it" for place in broken))
    return parse_config(options, options_class(kind), where)


def _broken_texts(value: Any, where: str) -> Iterator[str]:
    """Where texts are that UTF-8 cannot hold: YAML can escape them."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield where
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _broken_texts(key, where)
            yield from _broken_texts(one, f"{where}.{key}" if isinstance(key, str) and key.isprintable() else where)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _broken_texts(one, f"{where}[{number}]")


def read_tasks(path: Path) -> dict[str, Task]:
    """TASKS.yaml → name → task, in the file's order; raises one UserError with every mistake."""
    return {name: _parse_task(name, options) for name, options in load_config(path, TasksFile).tasks.items()}


def domain_tasks(pairs: Sequence[str]) -> dict[str, Task]:
    """`DOMAIN=FILE` of the command line → tasks of kind bits_per_byte."""
    tasks: dict[str, Task] = {}
    problems: list[str] = []
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not file or not re.fullmatch(NAME_PATTERN, name):
            problems.append(
                f"--bits-per-byte {pair}: not of the form DOMAIN=FILE.jsonl, DOMAIN of letters, digits, '.', '_', '-', 200 at most"
            )
        elif name in tasks:
            problems.append(f"--bits-per-byte {pair}: the domain '{name}' is given twice; give each its own name")
        else:
            tasks[name] = BitsPerByteTask(kind="bits_per_byte", data=Path(file))
    if problems:
        raise UserError(*problems)
    return tasks


def collect_tasks(pairs: Sequence[str], path: Path | None) -> dict[str, Task]:
    """All that one command measures: domains first, then TASKS.yaml; a missing data file is found here, before any work."""
    tasks = domain_tasks(pairs)
    for name, task in (read_tasks(path) if path else {}).items():
        if name in tasks:
            raise UserError(f"{path}: tasks.{name}: --bits-per-byte uses this name too; rename one of them")
        tasks[name] = task
    if not tasks:
        raise UserError("nothing to measure; give --bits-per-byte DOMAIN=FILE.jsonl or --tasks TASKS.yaml")
    missing = [
        f"{name}: {file}: no such file; check the path of the task's data"
        for name, task in tasks.items()
        for file in task.files
        if not file.is_file()
    ]
    if missing:
        raise UserError(*missing)
    return tasks
