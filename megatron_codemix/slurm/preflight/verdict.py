"""From what all nodes answered to those that training may use. Pure.

Some faults show only in comparison: a clock, a version, a speed. The majority is right; of two, the node that the batch script
runs on. A fault that every node has in common is none of a node's: leaving nodes out would not help.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_codemix.slurm.preflight.report import ALL_REDUCE, CLOCK, ITSELF, Report
from megatron_codemix.slurm.preflight.settings import PreflightConfig

_COMMON_MINIMUM = {ALL_REDUCE: 3}
"""Nodes that must share a fault before it is taken for nobody's, where two are not enough: one bad node spoils its only pair."""


@dataclass(frozen=True)
class Verdict:
    """Whom training may use, and why not the others."""

    chosen: tuple[str, ...]
    """Nodes for training, in Slurm's order; empty where there are too few."""
    spare: tuple[str, ...]
    """Good nodes that are not needed now."""
    bad: tuple[tuple[str, str], ...]
    """Node and reason, in one line."""
    stop: str = ""
    """Why the job cannot go on with any nodes: a fault they all have, so that others would not help."""

    @property
    def goes_on(self) -> bool:
        return bool(self.chosen)

    def lines(self, needed: int, asked: int) -> list[str]:
        """What the log is told: a line for each bad node, and one for what follows."""
        found = [f"{node}: {reason}" for node, reason in self.bad]
        if self.stop:
            return [*found, f"all nodes have it in common, so others would not help: {self.stop}"]
        if not self.goes_on:
            good = len(self.spare)
            return [*found, f"{good} of {asked} nodes {'is' if good == 1 else 'are'} good, {needed} needed"]
        spares = f", spare: {', '.join(self.spare)}" if self.spare else ""
        without = f", without {', '.join(node for node, _ in self.bad)}" if self.bad else ""
        good = len(self.chosen) + len(self.spare)
        last = f"{good} of {asked} nodes are good; training on {', '.join(self.chosen)}{without}{spares}"
        return [*found, last]


def decide(reports: Sequence[Report], needed: int) -> Verdict:
    """Choose `needed` good nodes, in the order of the reports; the faults must have been added before."""
    bad = tuple((one.node, one.reason) for one in reports if not one.good)
    stop = _common(reports)
    good = tuple(one.node for one in reports if one.good)
    if stop or len(good) < needed:
        return Verdict((), good, bad, stop)
    return Verdict(good[:needed], good[needed:], bad)


def _common(reports: Sequence[Report]) -> str:
    """The fault that all nodes have, or ""."""
    kinds = [{one.kind for one in report.faults if len(reports) >= _COMMON_MINIMUM.get(one.kind, 2)} for report in reports]
    shared = sorted(set.intersection(*kinds) if len(reports) > 1 else ())
    return next((one.line for kind in shared for one in reports[0].faults if one.kind == kind), "")


def compare(reports: Sequence[Report], config: PreflightConfig, home: str) -> None:
    """Add the faults that show only beside other nodes: clocks, versions, speeds of the matrix product.

    home: the node of the batch script, which decides where as many nodes say one thing as another.
    """
    _compare_clocks(reports, config.clock_skew_seconds)
    _compare_versions([one for one in reports if "versions" in one.checks], home)
    _compare_matmul(reports, config)


def _compare_clocks(reports: Sequence[Report], allowed: float) -> None:
    known = [(one, one.clock_offset) for one in reports if one.clock_offset is not None]
    if not known:
        return

    def company(offset: float) -> tuple[int, float]:
        return sum(abs(other - offset) <= allowed for _, other in known), -abs(offset)

    right = max((offset for _, offset in known), key=company)
    for report, offset in known:
        off = offset - right
        if abs(off) - report.clock_uncertainty > allowed:
            way = "ahead of" if off > 0 else "behind"
            report.fault(CLOCK, f"clock is {abs(off):.1f} s {way} the others' ({allowed:g} allowed); set it (chronyc makestep)")


def flat_versions(found: dict[str, Any]) -> dict[str, str]:
    """What must be equal everywhere, by name."""
    return {name: str(value) for name, value in found.items() if value is not None}


def _compare_versions(reports: Sequence[Report], home: str) -> None:
    every = {one.node: flat_versions({**one.checks["versions"], **_of_torch(one)}) for one in reports}
    for name in sorted({name for found in every.values() for name in found}):
        values = {node: found[name] for node, found in every.items() if name in found}
        often = Counter(values.values())
        right = max(often, key=lambda value: (often[value], values.get(home) == value, value))
        for report in reports:
            value = values.get(report.node, right)
            if value != right:
                report.fault(f"version of {name}", f"{name} is {value}, {right} on the others")


def _of_torch(report: Report) -> dict[str, Any]:
    parts, gpus = report.parts("torch"), report.checks.get("gpu", {}).get("devices", [])
    driver = {"driver": gpus[0]["driver_version"]} if gpus else {}
    return driver | ({name: parts[0].get(name) for name in ("torch", "cuda", "nccl", "device")} if parts else {})


def _compare_matmul(reports: Sequence[Report], config: PreflightConfig) -> None:
    known = [(one, [part["tflops"] for part in one.parts("matmul")]) for one in reports]
    known = [(one, speeds) for one, speeds in known if speeds]
    if not known:
        return
    usual = statistics.median(speed for _, speeds in known for speed in speeds)
    for report, speeds in known:
        for number, speed in enumerate(speeds):
            _judge_speed(report, f"matrix product on device {number}", "matmul", speed, usual, config.matmul_tflops, config, "TFLOP/s")


def compare_pairs(reports: Sequence[Report], config: PreflightConfig) -> None:
    """Add the faults of nodes that are slow with every partner: the best of a node's pairs counts."""
    best = {one.node: max((gib for other, gib in one.pairs.items() if other != ITSELF), default=None) for one in reports}
    known = [gib for gib in best.values() if gib is not None]
    for report in reports:
        gib = best[report.node]
        if gib is not None:
            usual = statistics.median(known)
            _judge_speed(report, "all-reduce with its best partner", ALL_REDUCE, gib, usual, config.all_reduce_gib, config, "GiB/s")


def _judge_speed(
    report: Report, what: str, kind: str, speed: float, usual: float, floor: float, config: PreflightConfig, unit: str
) -> None:
    if speed < floor:
        report.fault(kind, f"{what}: {speed:.3g} {unit}, {floor:g} asked for")
    elif on_gpu(report) and speed < config.slowest * usual:
        report.fault(kind, f"{what}: {speed:.3g} {unit}, {usual:.3g} on the median node")


def on_gpu(report: Report) -> bool:
    """Whether the node's processes run on GPUs."""
    return any(part.get("cuda_device") for part in report.parts("torch"))
