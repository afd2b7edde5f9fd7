"""Run config + sizes of the shards → plan, or every reason why the corpus cannot feed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from megatron_codemix.config import RunConfig, Stage
from megatron_codemix.errors import UserError
from megatron_codemix.mixture.interleave import Interleaving
from megatron_codemix.mixture.pieces import ends_of, stage_pieces, targets_at
from megatron_codemix.mixture.plan import Plan
from megatron_codemix.mixture.stage_plan import StagePlan
from megatron_codemix.mixture.staircase import Staircase


@dataclass
class _Cursor:
    """How far one source has been read."""

    count: int = 0
    """Samples behind the cursor, in windows of the size below."""
    windows: int = 0
    """Windows of an epoch, as the source is cut now; 0: not read yet."""
    seen: Fraction = Fraction(0)
    """Expected part of this epoch's tokens that has been read."""
    foreign: Fraction = Fraction(0)
    """The part of `seen` that was read at another sequence length."""

    def cut(self, windows: int) -> None:
        """Go over to another sequence length: the same part of the epoch, rounded up."""
        if self.windows and windows != self.windows:
            self.count = math.ceil(Fraction(self.count, self.windows) * windows)
            self.foreign = self.seen = self.seen if self.count % windows else Fraction(0)
        self.windows = windows

    def read(self, number: int) -> Fraction:
        """Advance; returns how many of the windows are expected to repeat tokens of this epoch."""
        first_epoch = min(number, self.windows - self.count % self.windows)
        overlap = first_epoch * self.foreign
        self.count += number
        if first_epoch < number or self.count % self.windows == 0:
            self.foreign = Fraction(0)
            self.seen = Fraction(self.count % self.windows, self.windows)
        else:
            self.seen += Fraction(first_epoch, self.windows) * (1 - self.foreign)
        return overlap


@dataclass
class _Compilation:
    config: RunConfig
    windows: Mapping[str, Callable[[int], int]]
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources = tuple(self.config.sources)
        self.cursors = {name: _Cursor() for name in self.sources}
        self.sizes: dict[str, dict[int, int]] = {name: {} for name in self.sources}
        self.read_tokens = dict.fromkeys(self.sources, 0)

    def _size(self, name: str, length: int, where: str) -> int:
        if length not in self.sizes[name]:
            self.sizes[name][length] = self.windows[name](length)
        size = self.sizes[name][length]
        if size < 1:
            self.problems.append(
                f"{where}: source '{name}' has no window of {length:,} tokens; add documents, shorten sequence_length or give it no share"
            )
        return size

    def stage(self, index: int, declared: Stage, first_step: int, place: str, until: int | None = None) -> StagePlan:
        """place: of the declaration, for messages; until: where a branch leaves it, if it does."""
        where = f"{place} ({declared.name})"
        whole = batches = Staircase.of(declared)
        if until is not None and until < first_step + whole.num_steps:
            batches = whole.cut(until - first_step)
        ends = {name: ends_of(share) for name, share in declared.mixture.items()}
        # By name, so that the order of samples does not depend on the order of lines in a YAML file.
        members = sorted(name for name, (start, end) in ends.items() if start or end)
        pieces = stage_pieces([ends[name] for name in members], whole)
        interleaving = Interleaving.compile(pieces, f"{where}.mixture")
        drawn = dict(zip(members, interleaving.counts(batches.num_samples).tolist(), strict=True))
        windows, cursors, overlap = [], [], []
        for name in self.sources:
            cursor = self.cursors[name]
            if declared.restart:
                cursor = self.cursors[name] = _Cursor()
            size = self._size(name, declared.sequence_length, where) if name in drawn else 0
            if size:
                cursor.cut(size)
            windows.append(size)
            cursors.append(cursor.count)
            overlap.append(cursor.read(drawn[name]) if size else Fraction(0))
            self.read_tokens[name] += drawn.get(name, 0) * declared.sequence_length
        return StagePlan(
            index=index,
            place=place,
            name=declared.name,
            first_step=first_step,
            batches=batches,
            sequence_length=declared.sequence_length,
            declared_tokens=declared.tokens,
            learning_rate=declared.learning_rate,
            restart=declared.restart,
            mixture={name: _share_json(*ends[name]) for name in sorted(ends)},
            members=np.array([self.sources.index(name) for name in members]),
            interleaving=interleaving,
            windows=np.array(windows, np.int64),
            cursors=np.array(cursors, np.int64),
            drawn=np.array([drawn.get(name, 0) for name in self.sources], np.int64),
            overlap=tuple(overlap),
            objective=declared.objective,
            targets=targets_at(pieces, batches.num_samples),
            whole=whole,
            inherited=until is not None,
        )

    def check_epochs(self, plan: Plan) -> None:
        """Refuse what reads a source more often than its max_epochs."""
        for name, epochs in plan.epochs().items():
            cap = Fraction(str(self.config.sources[name].max_epochs))
            if epochs <= cap:
                continue
            one_epoch = min(size * length for length, size in self.sizes[name].items())
            remedy = math.ceil(epochs * 100) / 100
            self.problems.append(
                f"sources.{name}.max_epochs: the stages need {self.read_tokens[name]:,} tokens of '{name}' ({float(epochs):.4g} epochs), "
                f"but it holds {one_epoch:,}, of which max_epochs {float(cap):g} allows {math.floor(one_epoch * cap):,}; "
                f"train on fewer tokens, lower its share, add documents, or raise max_epochs to {remedy:g}"
            )


def _share_json(start: Fraction, end: Fraction) -> Any:
    return str(start) if start == end else {"start": str(start), "end": str(end)}


def _declared(config: RunConfig) -> Iterator[tuple[str, Stage, int | None]]:
    """Every stage, those of the trunks first: (its place in the config, the stage, the step at which a branch left its run)."""
    for number, part in enumerate((config.branch.history or []) if config.branch else []):
        for index, stage in enumerate(part.stages):
            yield f"branch.history[{number}].stages[{index}]", stage, part.until
    for index, stage in enumerate(config.stages):
        yield f"stages[{index}]", stage, None


def compile_plan(
    config: RunConfig,
    windows: Mapping[str, Callable[[int], int]],
    fingerprints: Mapping[str, str],
    shard_windows: Mapping[str, Callable[[int], np.ndarray]] | None = None,
) -> Plan:
    """The plan of a run.

    windows: source → function from a sequence length to the number of windows of its training split
    (`SplitReader.num_windows`); fingerprints: source → the manifest's fingerprint; shard_windows: as windows, of each
    shard (`SplitReader.shard_windows`), needed by `data.order: blocks`.
    Raises UserError with every source that is too small for its share or read more often than max_epochs,
    and for shares whose common denominator is too large.
    """
    compilation = _Compilation(config, windows)
    stages: list[StagePlan] = []
    for place, declared, until in _declared(config):
        first_step = stages[-1].end_step if stages else 0
        if until is None or first_step < until:
            stages.append(compilation.stage(len(stages), declared, first_step, place, until))
    if compilation.problems:
        raise UserError(*dict.fromkeys(compilation.problems))
    described: dict[str, dict[str, Any]] = {
        name: {
            "fingerprint": fingerprints[name],
            "windows": {str(length): size for length, size in compilation.sizes[name].items()},
            "max_epochs": source.max_epochs,
        }
        for name, source in config.sources.items()
    }
    block_shards = config.data.block_shards if config.data.order == "blocks" else None
    if block_shards is not None:
        assert shard_windows is not None, "the order 'blocks' needs the windows of each shard"
        for name, entry in described.items():
            entry["shard_windows"] = {length: shard_windows[name](int(length)).tolist() for length in entry["windows"]}
    plan = Plan(config.seeds.data, described, tuple(stages), block_shards)
    compilation.check_epochs(plan)
    if compilation.problems:
        raise UserError(*compilation.problems)
    return plan
