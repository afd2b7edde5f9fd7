"""Starts an agent on every node, waits for what they find, has them try all-reduces. Runs on the node of the batch script; no torch.

How long is a node waited for? Python and torch take two seconds to start from a warm cache and a minute from a cold shared file
system, so no fixed time tells slow from hung. A node that does nothing at all (no answer; a disk check that stays open; a
process that neither computes nor reads) while half of the others are ready, and for at least as long as those needed, hangs.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from megatron_codemix.progress import say
from megatron_codemix.slurm.preflight import pairs
from megatron_codemix.slurm.preflight.channel import Channel, Message, end_all
from megatron_codemix.slurm.preflight.report import ALL_REDUCE, ITSELF, Report
from megatron_codemix.slurm.preflight.settings import PreflightConfig
from megatron_codemix.slurm.preflight.verdict import compare, compare_pairs, on_gpu
from megatron_codemix.slurm.preflight.watch import NodeWatch

_POLL_SECONDS = 0.1
_TELL_SECONDS = 5.0
_NAMED = 8
"""Nodes that a line lists."""
_CPU_MEGABYTES, _GPU_MEGABYTES = 4, 64
_GPU_PATIENCE = 2.0
"""An all-reduce between GPUs may take so many times as long: NCCL looks for ways first."""
_WHOLE = 3
"""Of fewer nodes a pair is the whole."""

Group = tuple[str, ...]


@dataclass
class _Try:
    """One all-reduce of a group: who has not answered, and what the others did."""

    group: Group
    waits: set[tuple[str, int]]
    speeds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def good(self) -> bool:
        return not self.waits and not self.failure


class Coordinator:
    """One look at some nodes. `command(node)` starts an agent there; its options are in the command."""

    def __init__(self, nodes: Sequence[str], home: str, config: PreflightConfig) -> None:
        self._nodes, self._home, self._config = tuple(nodes), home, config
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._watches: dict[str, NodeWatch] = {}
        self._tries: dict[str, _Try] = {}

    def examine(self, command: Callable[[str], Sequence[str]], environment: Mapping[str, str]) -> tuple[list[Report], str]:
        """All reports, in the order of the nodes; and what is wrong with all good nodes together, or ""."""
        try:
            for node in self._nodes:
                channel = Channel(node, command(node), environment, self._inbox)
                self._watches[node] = NodeWatch(channel, Report(node), time.monotonic())
            self._wait_for_checks()
            reports = [self._watches[node].report for node in self._nodes]
            compare(reports, self._config, self._home)
            self._try_alone()
            self._try_pairs()
            compare_pairs(reports, self._config)
            return reports, self._try_whole()
        finally:
            end_all([one.channel for one in self._watches.values()])

    def _wait_for_checks(self) -> None:
        began, half_ready = time.monotonic(), 0.0
        told = began
        while any(not one.settled for one in self._watches.values()):
            self._listen()
            now = time.monotonic()
            ready = sum(one.ready for one in self._watches.values())
            if not half_ready and ready and 2 * ready >= sum(not one.gone for one in self._watches.values()):
                half_ready = now
            if now - told > _TELL_SECONDS:
                told = now
                self._tell(ready, now - began)
            for one in self._watches.values():
                if one.settled:
                    continue
                if now - began > self._config.seconds:
                    one.give_up(one.too_late(now - began))
                elif half_ready and now - half_ready > self._config.stall_seconds:
                    line = one.stalled(max(self._config.stall_seconds, half_ready - began))
                    if line:
                        one.give_up(line)

    def _tell(self, ready: int, spent: float) -> None:
        waits = [node for node, one in self._watches.items() if not one.settled]
        names = ", ".join(waits[:_NAMED]) + (f" and {len(waits) - _NAMED} more" if len(waits) > _NAMED else "")
        say(f"preflight: {ready} of {len(self._nodes)} nodes ready after {spent:.0f} s; waiting for {names}")

    def _listen(self) -> None:
        """What has come, waiting a moment for the first."""
        try:
            message = self._inbox.get(timeout=_POLL_SECONDS)
            while True:
                if "reduce" in message.content:
                    self._take_reduce(message)
                else:
                    self._watches[message.node].take(message.content, message.clock)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _good(self) -> list[str]:
        return [node for node in self._nodes if self._watches[node].report.good]

    def _try_alone(self) -> None:
        """The GPUs of each node among themselves, on all nodes at once."""
        alone = [(node,) for node in self._good() if on_gpu(self._report(node)) or self._report(node).workers > 1]
        for one in self._run("alone", alone):
            report = self._report(one.group[0])
            if one.good:
                report.pairs[ITSELF] = min(one.speeds)
            else:
                report.fault(ALL_REDUCE, f"all-reduce among its own processes: {self._failure(one)}")

    def _try_pairs(self) -> None:
        nodes = self._good()
        outcomes: dict[pairs.Pair, bool] = {}
        failures: dict[frozenset[str], str] = {}
        for number, planned in enumerate([*pairs.rounds(nodes), *[None] * pairs.RETRIES]):
            groups = pairs.retry(nodes, outcomes) if planned is None else planned
            for one in self._run(f"pairs-{number}", groups):
                first, second = one.group
                outcomes[first, second] = one.good
                if one.good:
                    self._report(first).pairs[second] = self._report(second).pairs[first] = min(one.speeds)
                else:
                    failures[frozenset(one.group)] = self._failure(one)
        for node, others in pairs.blame(nodes, outcomes).items():
            why = failures[frozenset((node, others[0]))]
            self._report(node).fault(ALL_REDUCE, f"all-reduce with {', '.join(others)} failed: {why}")

    def _try_whole(self) -> str:
        nodes = self._good()
        for one in self._run("whole", [tuple(nodes)] if len(nodes) >= _WHOLE else []):
            if not one.good:
                return f"the all-reduce over all {len(nodes)} good nodes failed, although each works in a pair: {self._failure(one)}"
        return ""

    def _report(self, node: str) -> Report:
        return self._watches[node].report

    def _failure(self, one: _Try) -> str:
        silent = sorted({node for node, _ in one.waits})
        return one.failure or f"no answer from {', '.join(silent)}"

    def _run(self, name: str, groups: Sequence[Group]) -> list[_Try]:
        """One all-reduce in each group, all groups at once: no node may be in two."""
        if not groups:
            return []
        gpu = any(on_gpu(self._report(group[0])) for group in groups)
        limit = self._config.stall_seconds * (_GPU_PATIENCE if gpu else 1.0)
        tries = []
        for group in groups:
            key, counts = f"{name}-{'-'.join(group)}", [self._report(node).workers for node in group]
            tries.append(_Try(group, {(node, worker) for node, count in zip(group, counts) for worker in range(count)}))
            self._tries[key] = tries[-1]
            order = {"do": "reduce", "id": key, "world": sum(counts), "store": self._report(group[0]).parts("torch")[0]["store"]}
            order |= {"megabytes": _GPU_MEGABYTES if gpu else _CPU_MEGABYTES, "seconds": limit}
            for at, node in enumerate(group):
                self._watches[node].channel.send({**order, "rank": sum(counts[:at])})
        began, half_done = time.monotonic(), 0.0
        while any(one.waits for one in tries):
            self._listen()
            now = time.monotonic()
            if not half_done and 2 * sum(one.good for one in tries) >= len(tries):
                half_done = now
            # the half that is done says how long it takes; the rest has as long again, and no less than a moment
            if now - began > limit + 1.0 or (half_done and now - half_done > max(limit / 2, half_done - began)):
                break
        self._tries.clear()  # an answer that comes later counts for nothing
        return tries

    def _take_reduce(self, message: Message) -> None:
        one = self._tries.get(message.content["reduce"])
        if one is None:
            return
        one.waits.discard((message.node, message.content["worker"]))
        if "fault" in message.content:
            one.failure = one.failure or f"{message.node}: {message.content['fault']}"
        else:
            one.speeds.append(message.content["gib"])
