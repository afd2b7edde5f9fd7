"""Shards are brought near before they are needed: the order of samples is known, so nobody has to guess.

A few threads walk through the plan in front of training and have each shard fetched (from a store) or read through once (from a file
system, into its cache), in the order in which they are first needed, as far ahead as there is room. Nothing here decides what is
read: a shard that is not near when its window is wanted is waited for by whoever wants it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from megatron_codemix.errors import JobError, UserError
from megatron_codemix.mixture import Plan
from megatron_codemix.mixture.assignment import Assignment, ByShard, shards_of
from megatron_codemix.progress import say
from megatron_codemix.shards import SplitReader

_WALK_SAMPLES = 1 << 14
"""Samples to look up at a time."""
_MOST_SAMPLES = 1 << 22
"""How far to look: beyond, a larger cache keeps what later epochs read again."""
_WAIT_SECONDS = 0.25
_AGAIN_SECONDS = 30.0
"""Until a shard that could not be had is tried again."""


_Key = tuple[int, int, int]
"""(source, shard, epoch)"""


@dataclass
class _Need:
    """A shard that coming steps read, in one epoch: later ones need it anew, and in between it may go."""

    first: int
    """The next step that does."""
    last: int
    """The last one, as far as the walk has come."""
    size: int
    near: bool = False
    busy: bool = False
    not_before: float = 0.0
    """time.monotonic() before which it need not be tried again."""


class Ahead:
    """Brings the shards of coming steps near, in threads of its own. `reach` tells it where training is."""

    def __init__(
        self,
        plan: Plan,
        readers: Mapping[str, SplitReader],
        assignment: Assignment,
        *,
        data_ranks: Collection[int],
        num_bytes: int,
        threads: int = 4,
    ) -> None:
        """data_ranks: those of this node, whose samples decide when assignment is by shard; num_bytes: of shards to have near."""
        self._plan, self._readers, self._assignment = plan.twin(), dict(readers), assignment
        self._data_ranks, self._num_bytes = sorted(data_ranks), num_bytes
        self._needs: dict[_Key, _Need] = {}
        self._epochs: Counter[tuple[int, int]] = Counter()
        """(source, shard) → its needs."""
        self._at = self._walked = -1
        self._stopped = False
        self._moved = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"shards-{number}") for number in range(threads)]
        self._warned: set[tuple[int, int]] = set()

    def reach(self, step: int) -> None:
        """Training is about to read the batches from `step` on. Cheap; the first call starts the threads."""
        if self._at < 0:
            self._at = self._walked = step
            for thread in self._threads:
                thread.start()
        elif step < self._at:  # a run that goes back: everything is looked up anew
            with self._changed:
                self._at = self._walked = step
                self._needs.clear()
                self._epochs.clear()
        self._at = step
        self._moved.set()

    def close(self) -> None:
        """Begin nothing more. Waits for nobody: what is under way may stall."""
        self._stopped = True

    def _work(self) -> None:
        while not self._stopped:
            with self._changed:
                found = self._next()
            if found is None:
                self._moved.wait(_WAIT_SECONDS)
                self._moved.clear()
                continue
            key, need = found
            try:
                need.near = self._place(key).bring(key[1])
                need.not_before = time.monotonic() + _WAIT_SECONDS
            except (UserError, JobError) as error:
                need.not_before = time.monotonic() + _AGAIN_SECONDS
                self._warn(key, error)
            finally:
                need.busy = False

    def _next(self) -> tuple[_Key, _Need] | None:
        """The shard to bring next; None when all that there is room for is near or under way."""
        while self._walked <= self._at < self._plan.num_steps:
            self._walk()
        self._drop()
        planned, now = 0, time.monotonic()
        checked, counted = 0, set[tuple[int, int]]()
        while True:
            needs = list(self._needs.items())
            for key, need in needs[checked:]:
                if key[:2] in counted:  # its turn comes when an earlier epoch has passed it
                    continue
                counted.add(key[:2])
                planned += need.size
                if planned > self._num_bytes:
                    return None
                if not (need.near or need.busy) and need.not_before <= now:
                    need.busy = True
                    return key, need
            checked = len(needs)
            if self._walked >= self._plan.num_steps or self._far():
                return None
            self._walk()

    def _drop(self) -> None:
        """Let go of what training has passed."""
        at = self._at
        if self._walked <= at < self._plan.num_steps:  # the last step of each is known as far as the walk has come
            return
        for key in [key for key, need in self._needs.items() if need.last < at and not need.busy]:
            del self._needs[key]
            self._epochs[key[:2]] -= 1
            self._place(key).want(key[1], None)
            if self._epochs[key[:2]]:  # a later epoch's: until then it may go
                self._place(key).want(key[1], next(need.first for other, need in self._needs.items() if other[:2] == key[:2]))

    def _far(self) -> bool:
        return self._plan.first_sample(self._walked) - self._plan.first_sample(min(self._at, self._plan.num_steps)) >= _MOST_SAMPLES

    def _walk(self) -> None:
        """Look up the shards of some more steps."""
        begin = max(self._walked, 0)
        stage = self._plan.stage_at(begin)
        batch = stage.batch_size_at(begin)
        steps = range(begin, min(begin + max(1, _WALK_SAMPLES // batch), stage.same_batch_until(begin)))
        samples = self._plan.samples(steps.start, len(steps))
        rows = np.arange(len(samples.source))
        if isinstance(self._assignment, ByShard):
            rows = np.concatenate([self._assignment.rows(self._plan, steps, rank) for rank in self._data_ranks])
        source = samples.source[rows].astype(np.int64)
        shard = shards_of(self._plan, self._readers, source, samples.window[rows], stage.sequence_length)
        # rows of a step are neighbours, so that the first and the last occurrence of a shard give its steps
        step = begin + rows // batch
        order = np.argsort(step, kind="stable")
        code, step = (source << 52 | samples.epoch[rows].astype(np.int64) << 28 | shard)[order], step[order]
        codes, first = np.unique(code, return_index=True)
        last = len(code) - 1 - np.unique(code[::-1], return_index=True)[1]
        for index in np.argsort(first, kind="stable").tolist():
            key = (int(codes[index] >> 52), int(codes[index] & 0xFFFFFFF), int(codes[index] >> 28 & 0xFFFFFF))
            need = self._needs.get(key)
            if need is not None:
                need.last = int(step[last[index]])
                continue
            size = self._readers[self._plan.sources[key[0]]].manifest.shards[key[1]].size
            self._needs[key] = _Need(int(step[first[index]]), int(step[last[index]]), size)
            self._epochs[key[:2]] += 1
            if self._epochs[key[:2]] == 1:
                self._place(key).want(key[1], int(step[first[index]]))
        self._walked = steps.stop

    def _place(self, key: _Key):
        return self._readers[self._plan.sources[key[0]]].place

    def _warn(self, key: _Key, error: Exception) -> None:
        """Once a shard: whoever needs it will try again, and fail if it must."""
        if key[:2] not in self._warned:
            self._warned.add(key[:2])
            say(f"warning: {error}")
