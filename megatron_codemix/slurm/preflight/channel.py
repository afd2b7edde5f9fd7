"""A node as the coordinator sees it: a process that was started for it, lines to its stdin, lines from its stdout.

Slurm's srun carries both, authenticated and without a port or a file of ours; an srun a node, since one that cannot start a task
on one node ends all of them. On this machine the process is the agent itself.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from megatron_codemix.errors import printable
from megatron_codemix.slurm.preflight.agent import parse

GONE = "gone"
"""Key of the last message of a channel, made here: its process has ended."""
_KEPT_LINES = 20
_END_SECONDS = 2.0


@dataclass(frozen=True)
class Message:
    """What a node said."""

    node: str
    content: dict[str, Any]
    clock: float
    """time.time() when it arrived."""


class Channel:
    """One node. Everything it says comes into `inbox`, which all nodes share."""

    def __init__(self, node: str, command: Sequence[str], environment: Mapping[str, str], inbox: queue.SimpleQueue[Message]) -> None:
        self.node, self._inbox = node, inbox
        self._printed: deque[str] = deque(maxlen=_KEPT_LINES)
        # a session of its own: Ctrl-C and the batch shell's signals are for the coordinator, which ends its channels
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._errors = threading.Thread(target=self._keep, args=(self._process.stderr,), daemon=True)
        self._errors.start()
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Never waits: the few lines of a preflight fit into a pipe that nobody reads."""
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def last_words(self) -> str:
        """What the process printed last, of what people should read; of srun's many lines the first error."""
        errors = [line for line in self._printed if "error:" in line]
        chosen = errors[:1] or [line for line in self._printed if line][-1:]
        return printable(chosen[0]) if chosen else "it said nothing"

    def _listen(self, out: IO[str]) -> None:
        for text in out:
            now = time.time()
            content = parse(text)
            if content is None:
                self._printed.append(text.strip())
            else:
                self._inbox.put(Message(self.node, content, now))
        code = self._process.wait()
        self._errors.join(1.0)
        self._inbox.put(Message(self.node, {GONE: code}, time.time()))

    def _keep(self, errors: IO[str]) -> None:
        for text in errors:
            self._printed.append(text.strip())

    def ask_to_end(self) -> None:
        self.send({"do": "end"})
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (monotonic), then kill it. A task that Slurm cannot end is left to Slurm."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self._process.pid, 9)


def end_all(channels: Sequence[Channel]) -> None:
    """Leave no process behind, within seconds."""
    for one in channels:
        one.ask_to_end()
    deadline = time.monotonic() + _END_SECONDS
    for one in channels:
        one.end(deadline)
