"""What the keys of a pickle would cost to hash, found from its opcodes before any of it is made.

A tuple that holds another twice, which holds another twice, is written in some bytes and hashed in 2ⁿ steps; one inside another, deep
enough, ends the process; and whole numbers can be chosen so that all of them share a slot. No description of a checkpoint has any of these.
"""

from __future__ import annotations

import pickletools
from typing import Any, NamedTuple

_MOST_DEEP = 32
"""Tuples inside one another, in a key."""
_MOST_STEPS = 64
"""Parts hashed, for each byte of the pickle."""
_MOST_ODD = 10_000
"""Keys that are neither texts nor small whole numbers nor objects."""
_MOST_NAMES = 10_000
"""Places at which classes and functions are named."""
_SMALL = 1 << 31
_CEILING = 1 << 40


class _Value(NamedTuple):
    """What is known of a value: parts that hashing it visits, tuples inside one another, whether its hash can be chosen."""

    size: int = 1
    depth: int = 0
    odd: bool = False


_PLAIN, _ODD = _Value(), _Value(odd=True)
_HASHED_PAIRS = ("SETITEMS", "DICT")
_HASHED_ALL = ("ADDITEMS", "FROZENSET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_INTO_FIRST = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""These put something into a value, which stays: even a tuple, where there is nothing to put in."""
_AS_IT_WAS = ("BINPERSID", "PROTO", "FRAME", "STOP", "READONLY_BUFFER")


def check_keys(content: bytes) -> None:
    """Raises ValueError for a pickle whose keys would take long to hash, and whatever `pickletools` raises for what is none."""
    stack: list[_Value | None] = []  # None: a mark
    memo: dict[int, _Value | None] = {}
    steps = odd = names = 0
    for code, argument, _ in pickletools.genops(content):
        name = code.name
        if name in _PUTS:
            assert isinstance(argument, int)
            if argument > len(content):
                raise ValueError("an entry of its memo lies beyond its end")  # the interpreter would make room for all before it
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            assert isinstance(argument, int)
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        elif name not in _AS_IT_WAS:
            names += name in ("GLOBAL", "STACK_GLOBAL", "INST")
            first, taken = _take(stack, code)
            keys = taken[::2] if name in _HASHED_PAIRS else taken if name in _HASHED_ALL else taken[:1] if name == "SETITEM" else []
            steps += sum(key.size for key in keys)
            odd += sum(key.odd for key in keys)
            if any(key.depth > _MOST_DEEP for key in keys) or steps > _MOST_STEPS * len(content) or odd > _MOST_ODD:
                raise ValueError("its keys are nested, or chosen, so that reading them would not end")
            if names > _MOST_NAMES:
                raise ValueError("it names more classes than any checkpoint has")
            stack += [first or _made(name, argument, taken) for _ in code.stack_after]


def _take(stack: list[_Value | None], code: Any) -> tuple[_Value | None, list[_Value]]:
    """(the value into which an opcode puts something, what else it takes off the stack). Raises ValueError, IndexError."""
    before = [one.name for one in code.stack_before]
    taken = []
    if "mark" in before:
        while (value := stack.pop()) is not None:
            taken.append(value)
        before = before[: before.index("mark")]
        taken.reverse()
    popped = [stack.pop() or _PLAIN for _ in before][::-1]  # POP may take a mark
    if code.name in _INTO_FIRST:
        return popped[0], [*popped[1:], *taken]
    return None, [*popped, *taken]


def _made(name: str, argument: Any, parts: list[_Value]) -> _Value:
    if name.startswith("TUPLE") or name == "FROZENSET":
        size = min(1 + sum(part.size for part in parts), _CEILING)
        return _Value(size, 1 + max((part.depth for part in parts), default=0), odd=True)
    chosen = isinstance(argument, float) or (isinstance(argument, int) and not -_SMALL < argument < _SMALL)
    return _ODD if chosen else _PLAIN
