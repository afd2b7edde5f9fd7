"""The plan: which window of which source is read at which step. A pure function of the config and the shards' sizes.

The sample at place p of a stage comes from the source that the interleaving names; it is that source's
j-th sample, j = the cursor at the stage's start + how often the stage has drawn from it before p. Sample j
is window order(j mod n) of epoch j div n, where n is the source's number of windows and `order` the keyed
permutation of (data seed, source name, epoch). Nothing in this depends on ranks, micro-batches or restarts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_codemix.files import sha256_json
from megatron_codemix.mixture.blocks import BlockOrder, Blocks
from megatron_codemix.mixture.permutation import Permutation, epoch_order
from megatron_codemix.mixture.stage_plan import StagePlan

FORMAT_VERSION = 1
_BLOCK_SAMPLES = 4096


@dataclass(frozen=True)
class Samples:
    """The global batch of one step (or of some, end to end), in order."""

    source: np.ndarray
    """int32 (B,): index into Plan.sources."""
    window: np.ndarray
    """int64 (B,): window of the source's split, at the stage's sequence length."""
    epoch: np.ndarray
    """int32 (B,): 0 for the first reading of the source."""

    @classmethod
    def read_only(cls, source: np.ndarray, window: np.ndarray, epoch: np.ndarray) -> Samples:
        """Samples whose arrays nobody can write to: they are shared by whoever asks for the same step."""
        for array in (source, window, epoch):
            array.setflags(write=False)
        return cls(source, window, epoch)

    @classmethod
    def concatenate(cls, parts: Sequence[Samples]) -> Samples:
        """Parts end to end."""
        columns = zip(*((part.source, part.window, part.epoch) for part in parts), strict=True)
        return cls.read_only(*map(np.concatenate, columns))

    def part(self, place: slice) -> Samples:
        """Some of the samples, as views."""
        return Samples(self.source[place], self.window[place], self.epoch[place])


class Plan:
    """Every sample of a run. Made by `compile_plan`; looks anything up in constant time and memory."""

    def __init__(
        self, seed: int, sources: Mapping[str, dict[str, Any]], stages: tuple[StagePlan, ...], block_shards: int | None = None
    ) -> None:
        """sources: name → {"fingerprint", "windows" {S: n}, "max_epochs"}, in the config's order.

        block_shards: shards that windows come from at a time; the sources then have "shard_windows" {S: [n, …]} too. None: all.
        """
        self.seed, self.stages, self.block_shards = seed, stages, block_shards
        self._orders = None if block_shards is None else Blocks(seed, block_shards)
        self.sources = tuple(sources)
        self._described = dict(sources)
        self._first_steps = [stage.first_step for stage in stages]
        self._first_samples = [0]
        for stage in stages:
            self._first_samples.append(self._first_samples[-1] + stage.num_samples)
        self._blocks: dict[tuple[int, int], Samples] = {}
        self.fingerprint = sha256_json(self._content(bounds=False))

    def described(self, source: str) -> dict[str, Any]:
        """What plan.json says of a source: "fingerprint", "windows" {S: n}, "max_epochs"."""
        return self._described[source]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.stages[-1].end_step

    @property
    def num_samples(self) -> int:
        """Windows of the run."""
        return self._first_samples[-1]

    def stage_at(self, step: int) -> StagePlan:
        """The stage of a step (0-based: the updates made before it). At num_steps, the last stage."""
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"step {step} lies outside the plan's 0 to {self.num_steps}")
        return self.stages[bisect.bisect_right(self._first_steps, step) - 1]

    def locate(self, sample: int) -> tuple[StagePlan, int, int]:
        """Global sample index → (stage, step, place in the step's batch)."""
        if not 0 <= sample < self.num_samples:
            raise ValueError(f"sample {sample} lies outside the plan's 0 to {self.num_samples - 1}")
        index = bisect.bisect_right(self._first_samples, sample) - 1
        stage = self.stages[index]
        step, place = stage.batches.locate(sample - self._first_samples[index])
        return stage, stage.first_step + step, place

    def first_sample(self, step: int) -> int:
        """Global index of a step's first sample: the samples read before it."""
        stage = self.stage_at(step)
        return self._first_samples[stage.index] + stage.samples_before(step)

    def samples(self, step: int, num_steps: int = 1) -> Samples:
        """The global batches of `num_steps` steps of one stage, end to end, in order. The arrays are read-only."""
        stage = self.stage_at(step)
        if not 0 < num_steps <= stage.end_step - step:
            raise ValueError(f"steps {step} to {step + num_steps} lie outside the plan's {self.num_steps}, or in two stages")
        # Small numpy calls cost more than their work: look up some thousand samples at once, keep two blocks.
        per_block = max(1, _BLOCK_SAMPLES // stage.batch_size) * stage.batch_size
        parts = []
        first, end = stage.samples_before(step), stage.samples_before(step + num_steps)
        while first < end:
            number, local = divmod(first, per_block)
            until = min(end, (number + 1) * per_block)
            parts.append(self._block(stage, number, per_block).part(slice(local, local + until - first)))
            first = until
        return parts[0] if len(parts) == 1 else Samples.concatenate(parts)

    def _block(self, stage: StagePlan, number: int, per_block: int) -> Samples:
        block = self._blocks.get((stage.index, number))
        if block is None:
            first = number * per_block
            block = self._look_up(stage, first, min(first + per_block, stage.num_samples))
            while len(self._blocks) >= 2:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[stage.index, number] = block
        return block

    def _look_up(self, stage: StagePlan, first: int, end: int) -> Samples:
        member, rank = stage.interleaving.select(np.arange(first, end))
        source = stage.members[member]
        sample = stage.cursors[source] + rank
        epoch, index = np.divmod(sample, stage.windows[source])
        window = np.empty_like(sample)
        for number in sorted(set(source.tolist())):
            chosen = np.flatnonzero(source == number)
            for reading in sorted(set(epoch[chosen].tolist())):
                here = chosen[epoch[chosen] == reading]
                window[here] = self._order(stage, number, reading)(index[here])
        return Samples.read_only(source.astype(np.int32), window, epoch.astype(np.int32))

    def _order(self, stage: StagePlan, source: int, epoch: int) -> Permutation | BlockOrder:
        """In which order an epoch of a source is read at the stage's sequence length."""
        name = self.sources[source]
        if self._orders is None:
            return epoch_order(int(stage.windows[source]), self.seed, name, epoch)
        length = stage.sequence_length
        return self._orders.order(name, epoch, length, self._described[name]["shard_windows"][str(length)])

    def twin(self) -> Plan:
        """The same plan for another thread: looking up keeps what it may need again."""
        return Plan(self.seed, self._described, self.stages, self.block_shards)

    def cursors(self, step: int) -> dict[str, int]:
        """Source → its samples before `step`, counted in windows of the stage's sequence length.

        A stage that restarts its sources, or changes the sequence length, restates them.
        """
        stage = self.stage_at(step)
        return dict(zip(self.sources, (stage.cursors + stage.counts(step)).tolist(), strict=True))

    def windows_between(self, stage: StagePlan, source: int, first_step: int, end_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, windows) of one source in some steps of a stage, in chunks; without going through the other sources."""
        size = int(stage.windows[source])
        start = int(stage.cursors[source] + stage.counts(first_step)[source])
        end = int(stage.cursors[source] + stage.counts(end_step)[source])
        while start < end:
            epoch, index = divmod(start, size)
            length = min(end - start, size - index, 1 << 18)
            yield epoch, self._order(stage, source, epoch)(np.arange(index, index + length))
            start += length

    def epochs(self) -> dict[str, Fraction]:
        """Source → how often the run reads it (1: every window once)."""
        return {
            name: sum((Fraction(int(s.drawn[index]), int(s.windows[index])) for s in self.stages if s.drawn[index]), Fraction(0))
            for index, name in enumerate(self.sources)
        }

    def drift(self) -> dict[str, Fraction]:
        """Source → its samples over the run minus the exact sum of its declared shares (ramps: of their pieces)."""
        drift = {name: Fraction(0) for name in self.sources}
        for stage in self.stages:
            for member, target in zip(stage.members.tolist(), stage.targets, strict=True):
                drift[self.sources[member]] += int(stage.drawn[member]) - target
        return drift

    def _content(self, bounds: bool = True) -> dict[str, Any]:
        """bounds: with max_epochs, which decides no sample, so that the fingerprint is without it."""
        epochs = self.epochs()
        sources = {name: {**described, "epochs": round(float(epochs[name]), 6)} for name, described in self._described.items()}
        if not bounds:
            sources = {name: {key: value for key, value in entry.items() if key != "max_epochs"} for name, entry in sources.items()}
        return {
            "format_version": FORMAT_VERSION,
            "seed": self.seed,
            "num_steps": self.num_steps,
            "sources": sources,
            **({} if self.block_shards is None else {"order": {"blocks": self.block_shards}}),
            "stages": [self._stage_json(stage) for stage in self.stages],
        }

    def _stage_json(self, stage: StagePlan) -> dict[str, Any]:
        def per_source(values: np.ndarray) -> dict[str, int]:
            return dict(zip(self.sources, values.tolist(), strict=True))

        return {
            "name": stage.name,
            "first_step": stage.first_step,
            "num_steps": stage.num_steps,
            "batch_size": stage.batches.as_json(),
            "sequence_length": stage.sequence_length,
            "declared_tokens": stage.declared_tokens,
            "tokens": stage.tokens,
            "restart": stage.restart,
            "mixture": stage.mixture,
            "cursors": per_source(stage.cursors),
            "windows": per_source(stage.drawn),
            **({"inherited": True} if stage.inherited else {}),
            **({"whole_steps": stage.whole.num_steps} if stage.whole != stage.batches else {}),
            "expected_overlap": {name: round(float(value), 3) for name, value in zip(self.sources, stage.overlap, strict=True) if value},
            **({} if stage.objective.is_clm else {"objective": stage.objective.model_dump(mode="json", exclude_none=True)}),
        }

    def as_json(self) -> dict[str, Any]:
        """What RUN/plan.json holds; with the run's config it is enough to recompute the plan without the shards."""
        return {**self._content(), "fingerprint": self.fingerprint}
