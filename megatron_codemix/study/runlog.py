"""RUN/log.jsonl, followed while a run writes it (`train.read_log` reads it afterwards)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TokenCounter:
    """Follows a growing log; `tokens()` is the newest count of target tokens in lines written since the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._tokens = 0

    def tokens(self) -> int:
        """Target tokens that the newest whole step line states; 0 before the first."""
        try:
            with open(self._path, "rb") as handle:
                handle.seek(self._offset)
                fresh = handle.read()
        except FileNotFoundError:
            return 0
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in reversed(whole.splitlines()):
            entry = _entry(line)
            if entry.get("kind") == "step":
                self._tokens = int(entry.get("tokens", 0))
                break
        return self._tokens


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # half a line of a writer that was killed
        return {}
    return entry if isinstance(entry, dict) else {}


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The lines of one kind, in order."""
    return [line for line in lines if line.get("kind") == kind]
