"""Commits as git shows them: the message, then the difference."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from data_prep.rendering.shared import Count, Unrenderable, first_text, rows_of, valid_text

_MESSAGES = ("message", "commit_message", "subject", "title")
_DIFFS = ("diff", "patch")
_FILES = ("files", "mods", "changes")
_CONTEXT = 3
_MOST_CELLS = 1_000_000
"""Changed lines before × after that are compared: more would take seconds, and give no short difference."""


def render_commit(row: Mapping[str, Any], max_diff_bytes: int, count: Count) -> str:
    """Message and unified difference of a commit.

    row: `message` (or `commit_message`, `subject`, `title`), and one of: `diff` or `patch`; `files`, `mods` or `changes`, a list of
    mappings with `diff` or `patch` and a `filename`, `path` or `new_path`; `old_contents` and `new_contents` with `old_file` and
    `new_file` (as CommitPack has them). max_diff_bytes: a file's longer difference is left out.
    Raises Unrenderable where the message or every difference is missing or left out.
    """
    message = first_text(row, _MESSAGES).strip()
    if not message:
        raise Unrenderable("no commit message")
    diffs = _diffs(row)
    if not diffs:
        raise Unrenderable("no difference")
    short = [diff for diff in diffs if diff is not None and len(diff.encode("utf-8")) <= max_diff_bytes]
    if not short:
        raise Unrenderable("difference too long", f"{len(diffs)} files")
    if len(short) < len(diffs):
        count("long differences", len(diffs) - len(short))
    return f"{message}\n\n" + "\n".join(short) + "\n"


def _diffs(row: Mapping[str, Any]) -> list[str | None]:
    """A difference per file, without final newline; None: too long to make."""
    whole = first_text(row, _DIFFS)
    if whole:
        return [part.strip("\n") for part in _per_file(whole)]
    for name in _FILES:
        found: list[str | None] = []
        for file in rows_of(row.get(name)):
            diff = first_text(file, _DIFFS).strip("\n")
            if diff:
                path = first_text(file, ("filename", "new_path", "path", "old_path"))
                headed = diff.startswith(("diff --git", "--- "))
                found.append(diff if headed or not path else f"--- a/{path}\n+++ b/{path}\n{diff}")
        if found:
            return found
    before, after = row.get("old_contents"), row.get("new_contents")
    if isinstance(after, str) and (before is None or isinstance(before, str)) and (before or "") != after:
        old, new = first_text(row, ("old_file", "new_file")), first_text(row, ("new_file", "old_file"))
        return [unified(valid_text(before or ""), valid_text(after), old or "file", new or "file")]
    return []


def _per_file(diff: str) -> list[str]:
    """A git diff, divided where it says 'diff --git'."""
    parts = ("\n" + diff).split("\ndiff --git ")
    head, files = parts[0].strip("\n"), [f"diff --git {part}" for part in parts[1:]]
    return [head, *files] if head else files


def unified(before: str, after: str, old: str, new: str) -> str | None:
    """The unified difference of two files, without final newline; None where it would be thousands of lines.

    Equal beginnings and ends are set aside first, so that a small change in a large file is found in little time.
    """
    a, b = before.splitlines(), after.splitlines()
    if a == b:  # they differ in their ends of line alone
        a, b = before.split("\n"), after.split("\n")
    head = _common(a, b)
    tail = _common(a[head:][::-1], b[head:][::-1])
    if (len(a) - head - tail) * (len(b) - head - tail) > _MOST_CELLS:
        return None
    head, tail = max(head - _CONTEXT, 0), max(tail - _CONTEXT, 0)
    middle = a[head : len(a) - tail], b[head : len(b) - tail]
    lines = [f"--- a/{old}", f"+++ b/{new}"]
    for group in SequenceMatcher(None, *middle).get_grouped_opcodes(_CONTEXT):
        first, last = group[0], group[-1]
        lines.append(f"@@ -{_range(head + first[1], head + last[2])} +{_range(head + first[3], head + last[4])} @@")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                lines += [f" {line}" for line in middle[0][i1:i2]]
                continue
            lines += [f"-{line}" for line in middle[0][i1:i2]]
            lines += [f"+{line}" for line in middle[1][j1:j2]]
    return "\n".join(lines)


def _common(a: list[str], b: list[str]) -> int:
    """Lines that both begin with."""
    length = min(len(a), len(b))
    return next((number for number in range(length) if a[number] != b[number]), length)


def _range(start: int, stop: int) -> str:
    """As difflib and diff write it: lines count from 1, an empty range names the line before it."""
    length = stop - start
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"
