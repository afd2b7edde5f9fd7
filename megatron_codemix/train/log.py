"""RUN/log.jsonl: one JSON object a line, appended and flushed; survives a crash at any byte.

A line is written by one `write` call and is valid once its newline is there. A torn last line is cut off
when the file is opened for appending, and passed over by readers.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from megatron_codemix.errors import UserError
from megatron_codemix.files import write_bytes
from megatron_codemix.progress import say

LOG_NAME = "log.jsonl"
_CHUNK_BYTES = 1 << 16
_BEGINNINGS = ("start", "rewind")
"""Kinds of lines behind which the run goes on after a step, whatever came before."""


class LogFile:
    """Appends lines to a log; the caller must be the run folder's only writer (see lock.py)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(path, "a+b", buffering=0)  # noqa: SIM115 - lives as long as the run
        self._unwritten = b""
        _cut_torn_line(self._handle)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. NaN and infinities are refused (ValueError): they are not JSON.

        What a full disk does not take is written before the next line: a run does not end for want of a log line.
        """
        self._unwritten += json.dumps(line, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        with suppress(OSError):
            self._write()

    def sync(self) -> None:
        """Make everything written so far survive a power cut; called before each checkpoint is published.

        A full disk is no error here: the checkpoint itself will meet it.
        """
        with suppress(OSError):
            self._write()
            os.fsync(self._handle.fileno())

    def close(self, abandon: bool = False) -> None:
        """Sync and close. Raises OSError when lines are left that the disk does not take.

        abandon: leave the file as it is, for it is another process's now.
        """
        try:
            if not abandon:
                self._write()
                os.fsync(self._handle.fileno())
        finally:
            self._handle.close()

    def _write(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._handle.write(self._unwritten) :]


def _cut_torn_line(handle: BinaryIO) -> None:
    """Truncate after the last newline, found from the end so that a long log costs nothing."""
    end = handle.seek(0, os.SEEK_END)
    keep = end
    while keep > 0:
        start = max(keep - _CHUNK_BYTES, 0)
        handle.seek(start)
        newline = handle.read(keep - start).rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        keep = start
    if keep < end:
        handle.truncate(keep)


def read_log(run_folder: Path) -> list[dict[str, Any]]:
    """Lines of RUN/log.jsonl as they count: of a step that occurs twice, only what the later process wrote.

    A "start" line with `first_step` k (updates done before it) withdraws every earlier line of a step above k: the
    process before it had got further than its last checkpoint. So does a "rewind" line: the run went back. Both stay
    themselves. A torn last line is passed over. Raises UserError when there is no log or a line within it is not a JSON object.
    """
    path = Path(run_folder) / LOG_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such log; is this the output folder of `codemix train`?") from None
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(_whole_lines(content), start=1):
        line = _parsed(text)
        if line is None:
            raise UserError(f"{path}, line {number}: not a JSON object; the log was altered, restore it or delete that line")
        if line.get("kind") in _BEGINNINGS:
            lines = [old for old in lines if old.get("kind") in _BEGINNINGS or old.get("step", 0) <= line.get("first_step", 0)]
        lines.append(line)
    return lines


def mend_log(run_folder: Path) -> None:
    """Leave out the lines that are no JSON objects (a power cut may leave zeros), with a warning; the whole log is kept beside it.

    What was measured in them is lost; training needs no log. The caller must be the run folder's only writer. Raises OSError.
    """
    path = Path(run_folder) / LOG_NAME
    lines = _whole_lines(path.read_bytes()) if path.is_file() else []
    good = [text for text in lines if _parsed(text) is not None]
    if len(good) == len(lines):
        return
    names = (f"damaged-{LOG_NAME}" + (f".{number}" if number > 1 else "") for number in count(1))
    aside = next(beside for beside in map(path.with_name, names) if not beside.exists())
    write_bytes(aside, path.read_bytes())
    write_bytes(path, b"".join(text + b"\n" for text in good))
    say(f"warning: {path}: {len(lines) - len(good)} damaged line(s) were left out; the log as it was is {aside.name}")


def _whole_lines(content: bytes) -> list[bytes]:
    whole, _, _ = content.rpartition(b"\n")
    return whole.split(b"\n") if whole else []


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The line's object; None where it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def finished(run_folder: Path) -> bool:
    """Whether the log says that the run came to its end (and nothing was started after it); a damaged log does not."""
    path = Path(run_folder) / LOG_NAME
    lines = [_parsed(text) for text in _whole_lines(path.read_bytes())] if path.is_file() else []
    if not lines or None in lines:
        return False
    last = lines[-1] or {}
    return last.get("kind") == "end" and last.get("reason") == "finished"
