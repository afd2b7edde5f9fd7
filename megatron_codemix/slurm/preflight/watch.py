"""What is known of one node while it is being looked at: which checks are open, and whether it still makes progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from megatron_codemix.slurm.preflight.channel import GONE, Channel
from megatron_codemix.slurm.preflight.report import HANG, START, Report

_CLOCK_QUESTIONS = 5


@dataclass
class NodeWatch:
    """One node. Times are those of time.monotonic()."""

    channel: Channel
    report: Report
    began: float
    greeted: bool = False
    gone: bool = False
    heard: float = 0.0
    open: dict[str, float] = field(default_factory=dict)
    """Check → since when it is open, or when its process was last seen doing something."""
    busy: dict[str, int] = field(default_factory=dict)
    _asked: float = 0.0
    _answers: int = 0

    def take(self, content: dict[str, Any], clock: float) -> None:
        """A message other than that of an all-reduce. clock: time.time() of its arrival."""
        if self.gone:
            return  # it was given up: what it says now changes nothing
        now = self.heard = time.monotonic()
        if "hello" in content:
            self.greeted = True
            self.report.workers = int(content["workers"])
            self.report.checks["host"] = {"hostname": content["hello"], "gpus": content["gpus"]}
            self._ask_clock()
        elif "clock" in content:
            self._take_clock(float(content["clock"]), clock)
        elif "begin" in content:
            self.open[content["begin"]] = now
        elif "end" in content:
            self._end(content)
        elif "alive" in content:
            self._take_alive(content["alive"], now)
        elif GONE in content:
            self._take_end(content[GONE])
        if self.ready and not self.report.seconds:
            self.report.seconds = now - self.began

    @property
    def ready(self) -> bool:
        """Whether all its own checks have ended."""
        if not self.greeted or self.open or self._answers < _CLOCK_QUESTIONS:
            return False
        return len(self.report.parts("matmul")) == self.report.workers or not self.report.good

    @property
    def settled(self) -> bool:
        """Ready, or nothing more to wait for."""
        return self.ready or self.gone

    def stalled(self, patience: float) -> str:
        """What it hangs in, or "" while it makes progress. patience: seconds without any."""
        now = time.monotonic()
        if not self.greeted:
            return f"did not start within {now - self.began:.0f} s" if now - self.began > patience else ""
        if now - self.heard > patience:
            return f"has not answered for {now - self.heard:.0f} s{self._doing()}"
        old = [name for name, since in self.open.items() if now - since > patience]
        return f"hangs in its check of {old[0]}" if old else ""

    def give_up(self, line: str) -> None:
        self.report.fault(HANG, line)
        self.gone = True

    def too_late(self, seconds: float) -> str:
        """Why it was not ready after `seconds`."""
        if not self.greeted:
            return f"did not start within {seconds:.0f} s"
        return f"was not ready after {seconds:.0f} s{self._doing()}"

    def _doing(self) -> str:
        return f" (open: {', '.join(sorted(self.open))})" if self.open else ""

    def _ask_clock(self) -> None:
        self._asked = time.time()
        self.channel.send({"do": "clock", "id": self._answers})

    def _take_clock(self, theirs: float, arrived: float) -> None:
        """Cristian's algorithm: the answer that took the shortest time says most."""
        half = max(0.0, arrived - self._asked) / 2
        if self.report.clock_offset is None or half < self.report.clock_uncertainty:
            self.report.clock_offset, self.report.clock_uncertainty = theirs - (self._asked + half), half
        self._answers += 1
        if self._answers < _CLOCK_QUESTIONS:
            self._ask_clock()

    def _end(self, content: dict[str, Any]) -> None:
        name = content["end"]
        self.open.pop(name, None)
        if "fault" in content:
            kind = name.split()[0] if name.split()[0] in ("torch", "matmul") else name
            self.report.fault(kind, f"{name}: {content['fault']}")
        else:
            self.report.checks[name] = content["found"]

    def _take_alive(self, counters: dict[str, int], now: float) -> None:
        for worker, count in counters.items():
            if count != self.busy.get(worker):
                self.busy[worker] = count
                for name in (f"torch {worker}", f"matmul {worker}"):
                    if name in self.open:
                        self.open[name] = now

    def _take_end(self, code: int) -> None:
        self.gone = True
        if not self.greeted:
            self.report.fault(START, f"cannot be started: {self.channel.last_words()}")
        else:
            self.report.fault(START, f"its checks ended by themselves (exit code {code}): {self.channel.last_words()}")
