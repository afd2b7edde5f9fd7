"""Running tests and counting their assertions."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Sequence
from typing import Any

_BEGUN, _HELD, _FAILED = "__assertion_begun__", "__assertion_held__", "__assertion_failed__"
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_MOST_DETAIL = 300
_ONE = re.compile(r"assert [^\n\r\f\\;]*")
"""A line that is one assertion, if it is any statement."""


class Tally:
    """Assertions that held and that did not, each as often as it is written: a loop over what the program returned makes none more.

    An assertion goes by its number in the text of the tests. It holds if it did each time that it was made.
    """

    def __init__(self, every: bool) -> None:
        self.every = every
        self.written = 0
        """In the text of the tests."""
        self.detail = ""
        """Of the first failure."""
        self._place = ""
        self._open: dict[int, int] = {}
        self._held: set[int] = set()
        self._failed: set[int] = set()
        self._outside = 0

    @property
    def passed(self) -> int:
        """Assertions that held."""
        return len(self._held - self._failed)

    @property
    def failed(self) -> int:
        """Assertions that did not hold, and failures outside of any."""
        return len(self._failed) + self._outside

    @property
    def total(self) -> int:
        """As many as there are to hold."""
        return max(self.written, self.passed + self.failed)

    def enter(self, place: str) -> None:
        """Name what is run next."""
        self._place = place

    def begun(self, number: int) -> None:
        """An assertion is being made."""
        self._open[number] = self._open.get(number, 0) + 1

    def held(self, number: int) -> None:
        """It held."""
        self._close(number)
        self._held.add(number)

    def fail(self, error: BaseException, number: int | None = None) -> None:
        """An assertion failed; without its number: those that are being made, or what stands around them."""
        if number is not None:
            self._close(number)
            self._failed.add(number)
        elif self._open:
            self._failed.update(self._open)
            self._open.clear()
        else:
            self._outside += 1
        if not self.detail:
            try:
                text = f"{type(error).__name__}: {error}".removesuffix(": ")
            except BaseException:
                text = "an exception that cannot be shown"
            self.detail = f"{self._place}: {text}"[:_MOST_DETAIL]

    def _close(self, number: int) -> None:
        left = self._open.pop(number, 0) - 1
        if left > 0:
            self._open[number] = left


def prepare(tests: Sequence[str], tally: Tally) -> list[types.CodeType]:
    """The tests with a call before and behind each assertion; with `tally.every` in a `try` whose handler counts it as failed.

    Tells the tally how many are written; where there are none at all, a test counts as one. Raises SyntaxError, or ValueError.
    """
    made: list[ast.Module | str] = []
    for text in tests:
        if not tally.every and _ONE.fullmatch(text):
            # as MBPP writes them; spares a tree, which is most of the work
            made.append(f"{_BEGUN}({tally.written}); {text}\n{_HELD}({tally.written})\n")
            tally.written += 1
        else:
            tree = ast.parse(text)
            tally.written = _count(tree, tally.every, tally.written)
            made.append(tree)
    if not tally.written:
        tally.written = len(made)
        for number, tree in enumerate(made):
            assert isinstance(tree, ast.Module)
            tree.body.append(_call(_HELD, number, tree.body[-1] if tree.body else None))
    return [compile(one, f"<test {number}>", "exec", dont_inherit=True) for number, one in enumerate(made, 1)]


def run_tests(
    setup: str, codes: Sequence[types.CodeType], namespace: dict[str, Any], names: Sequence[str], tally: Tally
) -> BaseException | None:
    """Run `setup`, then each of the tests that `prepare` made, in one namespace. Returns what ended it, if something did.

    What is called one of `names` stays what it is, whatever `setup` defines. With `tally.every` an assertion that fails does not keep
    the others from being made. Tests that reach none of their assertions have not held.
    """
    kept = {name: namespace[name] for name in names if name in namespace}
    namespace[_BEGUN], namespace[_HELD], namespace[_FAILED] = tally.begun, tally.held, tally.fail
    try:
        tally.enter("setup")
        if setup.strip():
            exec(compile(setup, "<setup>", "exec", dont_inherit=True), namespace)
        namespace.update(kept)
    except BaseException as error:
        tally.fail(error)
        return error
    for number, code in enumerate(codes, 1):
        tally.enter(f"test {number}")
        try:
            exec(code, namespace)
        except BaseException as error:
            tally.fail(error)
            if not tally.every or not isinstance(error, Exception) or isinstance(error, MemoryError):
                return error
    if not tally.passed and not tally.failed:
        error = AssertionError("none of the assertions was reached")
        tally.fail(error)
        return error
    if not tally.failed:
        tally.written = 0  # those in branches that were not taken need not hold
    return None


def _count(node: ast.AST, every: bool, found: int) -> int:
    """Put the calls into the statements of a node, where `found` assertions stand before it; the number of assertions with it.

    Goes through statements only: that is what they are.
    """
    for name in _BLOCKS:
        block = getattr(node, name, None)
        if not isinstance(block, list):
            continue
        made: list[ast.AST] = []
        for statement in block:
            if isinstance(statement, ast.Assert):
                made += _counted(statement, every, found)
                found += 1
            else:
                found = _count(statement, every, found)
                made.append(statement)
        block[:] = made
    return found


def _counted(node: ast.Assert, every: bool, number: int) -> list[ast.AST]:
    begun, held = _call(_BEGUN, number, node), _call(_HELD, number, node)
    if not every:
        return [begun, node, held]
    error = ast.copy_location(ast.Name("__error__", ast.Load()), node)
    kind = ast.copy_location(ast.Name("Exception", ast.Load()), node)
    handler = ast.copy_location(ast.ExceptHandler(kind, "__error__", [_call(_FAILED, number, node, error)]), node)
    return [begun, ast.copy_location(ast.Try([node], [handler], [held], []), node)]


def _call(name: str, number: int, place: ast.stmt | None, *before: ast.expr) -> ast.Expr:
    function, counted = ast.Name(name, ast.Load()), ast.Constant(number)
    call = ast.Call(function, [*before, counted], [])
    made = ast.Expr(call)
    for one in (made, call, function, counted):
        if place is None:
            one.lineno, one.col_offset, one.end_lineno, one.end_col_offset = 1, 0, 1, 0
        else:
            ast.copy_location(one, place)
    return made
