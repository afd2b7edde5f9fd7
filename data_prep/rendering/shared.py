"""What the renderings of notebooks, commits and threads share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Count = Callable[..., None]
"""count(what, number=1): something was left out of a document."""

_FENCE = re.compile("`{3,}")


class Unrenderable(Exception):
    """A document that is not what the prep file says it is."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def fenced(text: str, language: str = "") -> str:
    """A Markdown code block, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, _FENCE.findall(text)), default=0))
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def valid_text(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def first_text(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The first of these fields that is a text with something in it, else ''."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return valid_text(value)
    return ""


def rows_of(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list; [] for anything else."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []
