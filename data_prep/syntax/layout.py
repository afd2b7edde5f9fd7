"""Line ends and indentation of code as symbols: `<NEW_LINE>`, `<INDENT>`, `<DEDENT>`, as in arXiv 2402.05783.

A line end in a string or a comment is text, as is the indentation of a line that continues an open bracket of
Python. Every other change of indentation is one `<INDENT>`, or one `<DEDENT>` for each level that is left, and levels that are
open at the end are closed: so the code can be written again with any width of a level.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from data_prep.syntax.spans import Range

NEW_LINE, INDENT, DEDENT = "<NEW_LINE>", "<INDENT>", "<DEDENT>"
_LINE_END = re.compile(rb"\r?\n")
_BRACKET = re.compile(rb"[()\[\]{}]")
_TAB_WIDTH = 8


@dataclass(slots=True)
class _Line:
    start: int
    """First byte behind the indentation."""
    end: int
    """Without the line end."""
    width: int
    """Columns of indentation; -1: it has none of its own (it continues a line, or is blank)."""
    is_comment: bool


def laid_out(code: bytes, verbatim: Sequence[Range], comments: Sequence[Range], is_python: bool) -> Iterator[Range | str]:
    """The code in order as ranges of text and names of symbols.

    verbatim: strings and comments whose line ends are text, comments: comments; both relative to `code`, in order.
    """
    lines = list(_lines(code, verbatim, {start for start, _ in comments} if is_python else set(), is_python))
    widths = [line.width for line in lines if line.width >= 0]
    levels = [widths[0] if widths else 0]
    behind = list(_next_widths(lines))
    for number, line in enumerate(lines):
        if number:
            yield NEW_LINE
        width = line.width
        if width >= 0:
            if line.is_comment:
                following = behind[number]
                width = following if following > levels[-1] else max(following, min(width, levels[-1]))
            while len(levels) > 1 and width < levels[-1]:
                levels.pop()
                yield DEDENT
            if width > levels[-1] and not (line.is_comment and width != behind[number]):
                levels.append(width)
                yield INDENT
        if line.start < line.end:
            yield line.start, line.end
    for _ in levels[1:]:
        yield DEDENT


def _next_widths(lines: Sequence[_Line]) -> Iterator[int]:
    """For each line the indentation of the next one behind it that counts; 0 behind the last."""
    widths = [0]
    for line in reversed(lines):
        widths.append(line.width if line.width >= 0 and not line.is_comment else widths[-1])
    return reversed(widths[:-1])


def _lines(code: bytes, verbatim: Sequence[Range], comments: set[int], is_python: bool) -> Iterator[_Line]:
    bare = bytearray(code)
    for start, end in verbatim:
        bare[start:end] = b"x" * (end - start)
    depths = _depths(bytes(bare)) if is_python else []
    start = 0
    continues = False
    for match in (*_LINE_END.finditer(bare), None):
        end = match.start() if match else len(code)
        text = code[start:end]
        if continues or (is_python and _depth_at(depths, start) > 0):
            yield _Line(start, end, -1, False)
        elif not text.strip():
            yield _Line(end, end, -1, False)
        else:
            first = end - len(text.lstrip(b" \t\x0c"))
            yield _Line(first, end, _columns(code[start:first]), first in comments)
        continues = is_python and bytes(bare[start:end]).endswith(b"\\")
        start = match.end() if match else end


def _columns(indentation: bytes) -> int:
    width = 0
    for byte in indentation:
        width = (width // _TAB_WIDTH + 1) * _TAB_WIDTH if byte == 0x09 else width + 1
    return width


def _depths(bare: bytes) -> list[tuple[int, int]]:
    """(offset behind a bracket, open brackets there)."""
    places = [match.start() for match in _BRACKET.finditer(bare)]
    steps = accumulate(1 if bare[place] in b"([{" else -1 for place in places)
    return [(place + 1, depth) for place, depth in zip(places, steps, strict=True)]


def _depth_at(depths: list[tuple[int, int]], offset: int) -> int:
    place = bisect_right(depths, offset, key=lambda item: item[0])
    return depths[place - 1][1] if place else 0
