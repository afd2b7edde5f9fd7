"""What runs on each node: checks it, and does what the coordinator says. Imports no torch; its workers do.

    python -m megatron_codemix.slurm.preflight.agent '{"paths": {"tmp": "/tmp"}, …}'

One JSON object a line, both ways. From the coordinator (channel.py), on stdin:

    {"do": "clock", "id": 3}                                      answered at once with {"clock": SECONDS, "id": 3}
    {"do": "reduce", "id": …, "rank": first, "world": …, "store": "host:port", "megabytes": …, "seconds": …}   to all workers
    {"do": "end"}, or the end of stdin                            everything is ended

To it, on stdout: {"hello": …}; for each check {"begin": NAME} and then {"end": NAME, "found": …} or {"end": NAME, "fault": LINE};
{"alive": {NAME: COUNTER}} twice a second, in which a counter that grows says that a worker's process does something (it may be
reading torch from a slow disk); {"reduce": ID, "worker": N, "gib": … | "fault": …}.

Each check has a thread of its own: a disk that does not answer must not keep the GPUs from being looked at.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from megatron_codemix.errors import printable
from megatron_codemix.slurm.preflight.checks import CheckFailed, check_disk, check_gpus, check_shared, check_versions, visible_gpus
from megatron_codemix.worker import die_with

_HEARTBEAT_SECONDS = 0.5
_WORKER = "megatron_codemix.slurm.preflight.worker"
# torch would end the process of a good node whose partner does not answer
_WORKER_ENVIRONMENT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
# of /proc/PID/stat, behind the name: minor and major page faults, user and system time
_STAT_FIELDS = (7, 9, 11, 12)


class Line:
    """Writes whole lines from any thread."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._lock = out, threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        with self._lock, suppress(OSError, ValueError):  # nobody listens any more: the end of stdin will say so
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()


class WorkerProcess:
    """One process with torch, whose lines are passed on with its number."""

    def __init__(self, number: int, gpu: bool, line: Line) -> None:
        self.number, self._line, self._tail = number, line, ""
        line.send({"begin": f"torch {number}"})
        self._open = f"torch {number}"
        command = [sys.executable, "-P", "-m", _WORKER, str(number) if gpu else "cpu"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **_WORKER_ENVIRONMENT},
        )
        for target in (self._pass_on, self._keep_errors):
            threading.Thread(target=target, daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def busy(self) -> int:
        """Grows while the process computes, reads, or is given memory."""
        total = 0
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            total = sum(int(fields[at]) for at in _STAT_FIELDS)
            counters = Path(f"/proc/{self.process.pid}/io").read_text().split()
            total += int(counters[1])  # rchar
        return total

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            message = parse(text)
            if message is None:
                self._tail = text.strip() or self._tail  # a library that prints
                continue
            if "begin" in message:
                self._open = f"{message['begin']} {self.number}"
            numbered = {key: f"{message[key]} {self.number}" for key in ("begin", "end") if key in message}
            self._line.send({**message, **numbered, "worker": self.number})
        code = self.process.wait()
        said = printable(self._tail) or "it said nothing"
        self._line.send({"end": self._open, "fault": f"process {self.number} ended (exit code {code}): {said}"})

    def _keep_errors(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self._tail = text.strip() or self._tail


def _folder(path: str | None) -> Path:
    """On this node. None: of temporary files; where $TMPDIR is not here programs pass it over, since sbatch may bring a login node's."""
    if path:
        return Path(os.path.expandvars(path))
    named = os.environ.get("TMPDIR", "")
    return Path(named if os.path.isdir(named) else "/tmp")


class Agent:
    """The checks of one node, and its workers."""

    def __init__(self, options: Mapping[str, Any], line: Line) -> None:
        self._options, self._line = options, line
        self.workers: list[WorkerProcess] = []

    def start(self) -> None:
        """Begin everything; nothing is waited for."""
        gpus = visible_gpus(os.environ)
        count = max(1, gpus)
        self._line.send({"hello": platform.node(), "process": os.getpid(), "workers": count, "gpus": gpus})
        options = self._options
        for name, path in options["paths"].items():
            self._check(f"disk {name}", lambda path=path: check_disk(_folder(path), options["minimum_gib_free"]))
        if options["token"] is not None:
            self._check("shared folder", lambda: check_shared(*options["token"]))
        self._check("versions", check_versions)
        self._check("gpu", lambda: check_gpus(gpus, options["gpus"], options["memory_gib"]))
        self.workers = [WorkerProcess(number, gpus > 0, self._line) for number in range(count)]
        threading.Thread(target=self._beat, daemon=True).start()

    def obey(self, lines: IO[str]) -> None:
        """Until the coordinator says that it is over, or is gone."""
        for text in lines:
            message = parse(text) or {}
            if message.get("do") == "clock":
                self._line.send({"clock": time.time(), "id": message["id"]})
            elif message.get("do") == "reduce":
                for one in self.workers:
                    one.send({**message, "rank": message["rank"] + one.number})
            elif message.get("do") == "end":
                return

    def end(self) -> None:
        for one in self.workers:
            one.process.kill()

    def _check(self, name: str, look: Callable[[], Mapping[str, Any]]) -> None:
        def run() -> None:
            try:
                self._line.send({"end": name, "found": look()})
            except CheckFailed as failure:
                self._line.send({"end": name, "fault": str(failure)})
            except Exception as error:  # a check that is broken must not look like a node that hangs
                self._line.send({"end": name, "fault": f"{type(error).__name__}: {printable(str(error))}"})

        self._line.send({"begin": name})
        threading.Thread(target=run, daemon=True).start()

    def _beat(self) -> None:
        while True:
            self._line.send({"alive": {str(one.number): one.busy() for one in self.workers}})
            time.sleep(_HEARTBEAT_SECONDS)


def parse(text: str) -> dict[str, Any] | None:
    """A message, or None for whatever else was printed."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def main() -> None:
    """Check, obey, end; never raises, never waits for a check that hangs."""
    die_with(os.getppid())
    agent = Agent(json.loads(sys.argv[1]), Line(sys.stdout))
    agent.start()
    agent.obey(sys.stdin)
    agent.end()
    os._exit(0)  # a thread may be in a call that never returns


if __name__ == "__main__":
    main()
