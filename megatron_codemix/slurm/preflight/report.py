"""What became known of one node, and the JSON that it is kept as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_codemix.errors import printable

CLOCK, START, HANG, ALL_REDUCE = "clock", "start", "hang", "all-reduce"
ITSELF = "itself"
"""In place of a partner: a node's own processes among themselves."""


@dataclass(frozen=True)
class Fault:
    """Why a node is not to be used."""

    kind: str
    """What was looked at: "start", "hang", "disk run", "clock", "versions", "gpu", "matmul", "all-reduce" …"""
    line: str
    """One line for people."""


@dataclass
class Report:
    """One node: what it answered, and what is wrong with it."""

    node: str
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth a line but no reason to leave the node out."""
    checks: dict[str, Any] = field(default_factory=dict)
    """Name of a check → what it found: "disk NAME", "versions", "gpu", "torch N" and "matmul N" (N: the process)."""
    clock_offset: float | None = None
    """Seconds that the node's clock is ahead of the coordinator's."""
    clock_uncertainty: float = 0.0
    """Seconds that the offset may be wrong by: half of the time that question and answer took."""
    workers: int = 0
    """Processes with torch: one a GPU, or one."""
    pairs: dict[str, float] = field(default_factory=dict)
    """The node that an all-reduce was done with, or ITSELF → GiB/s of bus bandwidth; nothing where it failed."""
    seconds: float = 0.0
    """From the start of all until its own checks were done."""

    def fault(self, kind: str, line: str) -> None:
        """One more reason; of a kind the first is kept."""
        if all(one.kind != kind for one in self.faults):
            self.faults.append(Fault(kind, printable(line)))

    @property
    def good(self) -> bool:
        return not self.faults

    @property
    def reason(self) -> str:
        """All faults in one line."""
        return "; ".join(one.line for one in self.faults)

    def parts(self, name: str) -> list[Any]:
        """What the processes of a node found in one check, by their number."""
        return [self.checks[f"{name} {number}"] for number in range(self.workers) if f"{name} {number}" in self.checks]

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "good": self.good,
            "faults": [{"kind": one.kind, "line": one.line} for one in self.faults],
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
            "clock": None
            if self.clock_offset is None
            else {"offset_seconds": round(self.clock_offset, 6), "uncertainty_seconds": round(self.clock_uncertainty, 6)},
            "checks": self.checks,
            "all_reduce_gib": self.pairs,
        }
