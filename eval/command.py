"""`codemix eval …`: a model is measured, results are compared or viewed, a model is fine-tuned, answers are judged.

The first word says which; anything else is a model directory that is to be measured. Each is imported only when it is asked for.
"""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_codemix.errors import UserError

VERBS = {
    "list": ("eval.run:list_tasks", "names of the standard tasks and suites"),
    "join": ("eval.join:main", "results of one model that were measured apart → one results folder"),
    "compare": ("eval.compare.command:main", "two results, item by item: paired tests, intervals, effect sizes"),
    "view": ("eval.view.command:main", "what a model got wrong, as an HTML page"),
    "samples": ("eval.code.samples:main", "pass@k of programs that were written already"),
    "finetune": ("eval.finetune:main", "fine-tune on COGS, passivization or question formation, and measure generalisation"),
    "judge": ("eval.judge.command:main", "win rate of open-ended answers, by a judge"),
}
"""First word → ("module:function", one line of help); the function takes the remaining argv and returns the exit code."""

_MEASURE = "eval.run:main"

_SHOWN = 80
"""Characters of a name that no file can have, in the message that says so."""


def main(argv: Sequence[str]) -> int:
    """Run `codemix eval`; returns the exit code."""
    with _names_that_can_be():
        return _run(list(argv))


@contextmanager
def _names_that_can_be() -> Iterator[None]:
    """Names that no file can have, of arguments or of tables of tasks, are the user's mistake wherever they are used: UserError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename or "a name")
        raise UserError(f"{name[:_SHOWN]}{'…' * (len(name) > _SHOWN)}: is too long a name for a file; give a shorter one") from None


def _run(words: list[str]) -> int:
    nothing = next((word for word in words if "\0" in word), None)
    if nothing is not None:
        raise UserError(f"{nothing[:_SHOWN]!r}: holds a zero byte; leave it out")
    if words and words[0] not in VERBS and not words[0].startswith("-") and not Path(words[0]).exists():
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        if near:
            raise UserError(f"{words[0]}: neither a folder nor a verb; did you mean '{near[0]}'?")
    target = VERBS[words.pop(0)][0] if words and words[0] in VERBS else _MEASURE
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)(words)
