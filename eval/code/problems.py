"""A problem whose answer is a part of a Python program."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from eval.code.execution import Ran
from eval.rows import Row
from eval.sandbox import Checks, Program, form_of


@dataclass(frozen=True)
class Problem:
    """What the model is asked, and what becomes of its completion: `head + completion + tail` is the program."""

    identity: str
    cluster: str
    """Problems that are not independent of one another share it."""
    prompt: str
    """What the model continues; for infilling, what stands before the gap."""
    head: str
    tail: str
    checks: Checks
    reference: str
    """A completion that passes."""
    stop: tuple[str, ...]
    suffix: str | None = None
    """What stands behind the gap; None: nothing is to be filled in."""
    seconds: float | None = None
    """Where the problem needs more than the task's."""

    def program(self, completion: str, seconds: float) -> Program:
        """The program of a completion."""
        return Program(self.head + completion + self.tail, self.checks, max(seconds, self.seconds or 0.0))

    def job(self, completion: str, seconds: float) -> Program | Ran:
        """The program of a completion, or what there is to say of one that is empty (unless the reference is no more)."""
        if self.reference.strip() and not completion.strip():
            return Ran.of_nothing(str(self.checks.form), len(self.checks.tests))
        return self.program(completion, seconds)

    def settled(self, row: Row) -> Problem:
        """With the form that its reference solution allows, and without stop strings that this one holds.

        A stop string inside of the reference would make the problem unsolvable. Raises UserError where the reference or a test does
        not parse.
        """
        try:
            for text in (self.checks.setup, *self.checks.tests):
                ast.parse(text)
            form = form_of(self.head + self.reference + self.tail, self.checks)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise row.problem(f"its reference solution or its tests are no Python ({error}); mend or remove the row") from None
        stop = tuple(text for text in self.stop if text not in self.reference)
        return replace(self, checks=replace(self.checks, form=form), stop=stop)
