"""What the processes of a sandbox use, read from /proc while a program runs, and which limit that is over.

A program that is done within milliseconds is never looked at. Where a control group can be had (`cgroup.py`), the kernel holds the
limit of memory as well; this one notices within `TICK_SECONDS`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from eval.sandbox.program import Limits, Verdict

TICK_SECONDS = 0.02
_LONGEST = 10.0
"""Times the limit of seconds by the clock, in any case."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLOCK = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Of all processes below one."""

    cpu: float
    """Seconds, with those of children that ended and were waited for."""
    awake: bool
    """Whether a thread runs, waits for a processor or for a disk."""
    memory_bytes: int
    """Resident, without the pages of files."""
    address_bytes: int
    own: dict[tuple[int, int], float]
    """(process id, start) → CPU seconds, without its children's."""


def descendants(pid: int) -> list[int]:
    """Processes below a process. Empty when there is none such."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children(waiting.pop())
        found += below
        waiting += below
    return found


def children(pid: int) -> list[int]:
    """Processes that a process has started or taken over. Empty when there is none such."""
    pids: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            pids += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    return pids


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as handle:
            return handle.read(4096)
    except OSError:
        return b""


def usage(pids: Iterable[int], shared_bytes: int = 0) -> Usage:
    """What processes use now. shared_bytes: of each that it has in common with the process it was forked from."""
    cpu, awake = 0.0, False
    memory = address = 0
    own: dict[tuple[int, int], float] = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            threads = os.listdir(f"/proc/{pid}/task")
            ran = 0
            for thread in threads:
                ran += int(_read(f"/proc/{pid}/task/{thread}/schedstat").split()[0])
                awake = awake or _fields(f"/proc/{pid}/task/{thread}/stat")[0] in (b"R", b"D")
            fields = _fields(f"/proc/{pid}/stat")
            user, system, users_children, systems_children = map(int, fields[11:15])
            spent = own[pid, int(fields[19])] = max(ran / 1e9, (user + system) / _CLOCK)  # the latter: with threads that ended
            cpu += spent + (users_children + systems_children) / _CLOCK
            resident, addresses = _memory(pid, threads)
            address += addresses
            memory += max(0, resident - shared_bytes)
    return Usage(cpu, awake, memory, address, own)


def _memory(pid: int, threads: list[str]) -> tuple[int, int]:
    """(resident, address) bytes of a process. One whose first thread has ended shows them in its others only."""
    for path in (f"/proc/{pid}/status", *(f"/proc/{pid}/task/{thread}/status" for thread in threads)):
        lines = dict(line.split(b":", 1) for line in _read(path).splitlines() if line.startswith((b"Rss", b"VmSize")))
        if lines:
            sizes = [int(lines[key].split()[0]) << 10 if key in lines else 0 for key in (b"RssAnon", b"RssShmem", b"VmSize")]
            return sizes[0] + sizes[1], sizes[2]
    return 0, 0


def _fields(path: str) -> list[bytes]:
    """Of a stat file, from the state on."""
    return _read(path).rpartition(b")")[2].split()


def shared_memory() -> int:
    """Bytes of shared memory on this machine, mapped or not."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith(b"Shmem:"):
            return int(line.split()[1]) << 10
    return 0


def _entries(folder: str) -> int:
    """Files, folders and links of a tmpfs, whose memory (a kibibyte each) its size does not count."""
    try:
        if os.stat(folder).st_dev == os.stat(folder.partition("/root")[2]).st_dev:
            return 0  # the machine's own: bubblewrap has not come to it yet
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_files - found.f_ffree


class Watch:
    """Over one program, from its start to its end."""

    def __init__(
        self,
        roots: Iterable[int],
        limits: Limits,
        seconds: float,
        shared_bytes: int = 0,
        folders: Iterable[str] = (),
        standing: int | None = None,
    ) -> None:
        """roots: processes above the program's and above its tests'. folders: where a program can write, seen from here (tmpfs).
        standing: a root below which there may be a process that was there before; what it used by the first look is not counted."""
        self._roots = list(roots)
        self._limits = limits
        self._seconds = seconds
        self._shared = shared_bytes
        self._folders = list(folders)
        self._start = self._looked = time.monotonic()
        self._cpu = 0.0
        self._spent: list[dict[tuple[int, int], float]] = [{} for _ in self._roots]
        self._asleep = 0.0
        self._standing = standing
        self._before: float | None = None
        self._memory_before: int | None = None

    def over(self) -> tuple[Verdict, str] | None:
        """The limit that is exceeded, if one is. To be asked every `TICK_SECONDS`."""
        now = time.monotonic()
        parts = [usage(descendants(root), self._shared) for root in self._roots]
        most = max(part.memory_bytes for part in parts)
        if most > self._limits.memory_bytes or self._hidden(max(part.address_bytes for part in parts)):
            return Verdict.MEMORY, f"its processes together have more than {self._limits.memory_bytes >> 20} MiB"
        if any(_entries(folder) > self._limits.files for folder in self._folders):
            return Verdict.OUTPUT, f"more than {self._limits.files:,} files"
        if self._before is None:
            self._before = sum(part.cpu for root, part in zip(self._roots, parts, strict=True) if root == self._standing)
        if any(self._seconds_of(number, part) > self._seconds for number, part in enumerate(parts)):
            return Verdict.TIMEOUT, f"more than {self._seconds:g} s of CPU time"
        # Asleep: nothing wants to run now, and nothing has run since. On a loaded machine this process is late as well: then it does
        # not know what was meanwhile, and counts less than went by.
        cpu = sum(part.cpu for part in parts)
        if cpu == self._cpu and not any(part.awake for part in parts) and not usage(self._roots).awake:
            self._asleep += min(now - self._looked, 2 * TICK_SECONDS)
        self._cpu, self._looked = cpu, now
        if self._asleep > self._seconds:
            return Verdict.TIMEOUT, f"did nothing for {self._seconds:g} s"
        if now - self._start > _LONGEST * self._seconds:
            return Verdict.TIMEOUT, f"{_LONGEST * self._seconds:g} s by the clock"
        return None

    def _seconds_of(self, number: int, part: Usage) -> float:
        """CPU seconds below a root: what is there, with children that were waited for; or all that was ever seen, since of children
        that nobody waits for nothing stays. Both are at most what was used."""
        spent = self._spent[number]
        for process, seconds in part.own.items():
            spent[process] = max(seconds, spent.get(process, 0.0))
        before = self._before if self._roots[number] == self._standing and self._before else 0.0
        return max(part.cpu, sum(spent.values())) - before

    def _hidden(self, address_bytes: int) -> bool:
        """Whether memory may be held that no process shows as resident: shared, and given back by each."""
        if address_bytes < self._limits.memory_bytes:
            return False
        now = shared_memory()
        if self._memory_before is None:
            self._memory_before = now
        return now - self._memory_before > self._limits.memory_bytes
