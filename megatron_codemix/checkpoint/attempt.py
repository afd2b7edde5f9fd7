"""RUN/attempt.json: which start of a run may publish. A process that was cut off and replaced finds another number there.

The lock (train/lock.py) keeps two starts apart as long as both can see each other; the attempt keeps a stale one out when
they could not: a node behind a cut network, a lock that the file system does not carry.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.files import write_json

ATTEMPT_NAME = "attempt.json"
FORMAT_VERSION = 1


class Superseded(UserError):
    """Another process has taken the run folder over."""

    @classmethod
    def of(cls, run_folder: Path) -> Superseded:
        """The line that says so."""
        return cls(f"{run_folder}: another process has taken this folder over; nothing more is written from here")


@dataclass(frozen=True)
class Attempt:
    """One start of a run, in its main process."""

    run_folder: Path
    number: int
    """0 for the first start, one more for each that follows."""
    content: dict[str, Any]
    """Of attempt.json while this attempt is the current one; names the process, so that equal numbers are no equal attempts."""

    @classmethod
    def begin(cls, run_folder: Path, least: int = 0) -> Attempt:
        """Take the next number, from now on the only one that may publish. The caller holds the run folder's lock.

        least: what the number must not be below, for a folder whose attempt.json was deleted. Raises UserError when
        attempt.json cannot be read or written.
        """
        try:
            before = _read(run_folder)
        except OSError as error:
            raise PassingError(
                f"{run_folder / ATTEMPT_NAME}: cannot be read ({error.strerror}); mend that, or choose another 'output'"
            ) from None
        number = max(least, before["attempt"] + 1 if before else 0)
        content = {
            "format_version": FORMAT_VERSION,
            "attempt": number,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
        }
        try:
            write_json(run_folder / ATTEMPT_NAME, content)
        except OSError as error:
            raise PassingError(f"{run_folder}: cannot be written to ({error.strerror}); choose another 'output'") from None
        return cls(run_folder, number, content)

    def is_current(self) -> bool:
        """Whether no other start has followed. A deleted attempt.json was followed by none: it would have been made anew.

        Raises OSError where it cannot be read right now, UserError where it is no attempt.
        """
        there = _read(self.run_folder)
        return there is None or there == self.content

    def require_current(self) -> None:
        """Call before anything is published or deleted. Raises Superseded, or as `is_current` does."""
        if not self.is_current():
            raise Superseded.of(self.run_folder)


def _read(run_folder: Path) -> dict[str, Any] | None:
    path = run_folder / ATTEMPT_NAME
    try:
        found = json.loads(path.read_bytes())
        if type(found["attempt"]) is not int or found["format_version"] != FORMAT_VERSION:
            raise ValueError("not an attempt of format_version 1")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it if no process trains into this folder") from None
    return found
