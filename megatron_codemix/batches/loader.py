"""Steps of the plan → batches, in the training process itself.

Windows are read a few steps at a time, all of a source's in one call, and turned into batches with whole-array
operations; handing small tensors between worker processes would cost several times what that takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import psutil

from megatron_codemix.batches.ahead import Ahead
from megatron_codemix.batches.batch import Batch, assemble
from megatron_codemix.batches.objectives import WindowObjective
from megatron_codemix.batches.space import SampleSpace, WindowSpace
from megatron_codemix.config import DataConfig
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, StagePlan
from megatron_codemix.mixture.assignment import Assignment, ByShard, InOrder
from megatron_codemix.shards import SplitReader, most_of_shards
from megatron_codemix.tokenizer import Tokenizer

_BLOCK_TOKENS = 96 << 10
"""Tokens to read at once: enough to make the calls' overhead small, little enough for a core's cache."""


class Loader:
    """The batches of one data-parallel rank. Holds no position: `batches(step)` is a function of the step.

    Which samples of the step's global batch are this rank's is its assignment's (assignment.py); every number of ranks and every
    micro-batch size trains on the same samples.
    """

    def __init__(
        self,
        plan: Plan,
        readers: Mapping[str, SplitReader],
        *,
        token_num_bytes: np.ndarray,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        tokenizer: Tokenizer | None = None,
        data: DataConfig = DataConfig(),  # noqa: B008 - frozen
        near_ranks: Collection[int] | None = None,
    ) -> None:
        """readers: source → its training split; token_num_bytes: `Tokenizer.token_num_bytes`; tokenizer: needed where a stage
        has an objective other than next-token prediction; data: how shards are read; near_ranks: the data-parallel ranks of this
        node, null for this one alone.

        Raises UserError when a stage's batch cannot be split into whole micro-batches over the ranks, and when
        the sources were made with different tokenizers.
        """
        self.plan, self.readers = plan, dict(readers)
        self.micro_batch_size, self.dp_rank, self.dp_size = micro_batch_size, dp_rank, dp_size
        _check_layout(plan, micro_batch_size, dp_size)
        self._end_of_text_id, self._dtype = _common_tokens(self.readers)
        self._num_bytes = _compact(token_num_bytes)
        self._tokenizer = tokenizer
        self._objectives: dict[int, WindowObjective] = {}
        self._spaces: dict[tuple[int, int], SampleSpace] = {}
        self._ready: dict[int, list[Batch]] = {}
        self._assignment = ByShard(dp_size, self.readers) if data.assignment == "shard" else InOrder(dp_size, micro_batch_size)
        self._in_store = any(reader.place.in_store for reader in self.readers.values())
        self._ahead = _ahead(plan, self.readers, self._assignment, data, near_ranks or (dp_rank,))

    def close(self) -> None:
        """Bring no more shards near."""
        if self._ahead is not None:
            self._ahead.close()

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of `step` (0-based)."""
        found = self._ready.pop(step, None)
        if found is None:
            self._ready = self._read(step)
            found = self._ready.pop(step)
        return found

    def _read(self, step: int) -> dict[int, list[Batch]]:
        """The batches of `step` and of the next few of its stage."""
        stage = self.plan.stage_at(step)
        per_step = stage.batch_size_at(step) // self.dp_size
        # of a store one step at a time: shards that it has passed make room for others
        ahead = 1 if self._in_store else max(1, _BLOCK_TOKENS // (per_step * stage.sequence_length))
        steps = range(step, min(step + ahead, stage.same_batch_until(step)))
        if self._ahead is not None:
            self._ahead.reach(step)
        source, window, epoch = self._mine(steps)
        tokens = np.empty((len(source), stage.sequence_length + 1), self._dtype)
        kinds = np.empty(tokens.shape, np.uint8)
        self._read_windows(stage, source, window, tokens, kinds)
        batches = assemble(
            tokens,
            kinds,
            end_of_text_id=self._end_of_text_id,
            token_num_bytes=self._num_bytes,
            source_ids=source,
            window_ids=window,
            epochs=epoch,
            micro_batch_size=self.micro_batch_size,
            objective=self._objective(stage),
        )
        if self._ahead is not None:
            self._ahead.reach(steps.stop)  # what no later step reads may go now, while this rank waits for others
        each = per_step // self.micro_batch_size
        return {number: batches[index * each : (index + 1) * each] for index, number in enumerate(steps)}

    def _objective(self, stage: StagePlan) -> WindowObjective | None:
        if stage.objective.is_clm:
            return None
        if stage.index not in self._objectives:
            assert self._tokenizer is not None, "an objective needs the tokenizer"
            self._objectives[stage.index] = WindowObjective(stage.objective, self._tokenizer, self.plan.sources, self.plan.seed)
        return self._objectives[stage.index]

    def _mine(self, steps: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, window and epoch of this rank's samples in some steps of one stage."""

        samples = self.plan.samples(steps.start, len(steps))
        rows = self._assignment.rows(self.plan, steps, self.dp_rank)
        return samples.source[rows], samples.window[rows], samples.epoch[rows]

    def _read_windows(self, stage: StagePlan, source: np.ndarray, window: np.ndarray, tokens: np.ndarray, kinds: np.ndarray) -> None:
        """Fill tokens and kinds (n, S+1) with the windows (n,) of the sources (n,)."""
        for number in sorted(set(source.tolist())):
            rows = np.flatnonzero(source == number)
            space = self._space(number, stage.sequence_length)
            if len(rows) == len(source):
                space.read(window, tokens, kinds)
                return
            part, part_kinds = np.empty((len(rows), tokens.shape[1]), tokens.dtype), np.empty((len(rows), tokens.shape[1]), np.uint8)
            space.read(window[rows], part, part_kinds)
            tokens[rows] = part
            kinds[rows] = part_kinds

    def _space(self, source: int, sequence_length: int) -> SampleSpace:
        key = (source, sequence_length)
        if key not in self._spaces:
            self._spaces[key] = WindowSpace(self.readers[self.plan.sources[source]], sequence_length)
        return self._spaces[key]


def _ahead(
    plan: Plan, readers: Mapping[str, SplitReader], assignment: Assignment, data: DataConfig, near_ranks: Collection[int]
) -> Ahead | None:
    """What brings shards near; None for windows of files in a random order, of which nothing can be brought near."""
    stored = [reader for reader in readers.values() if reader.place.in_store]
    if stored and data.cache is not None:
        return Ahead(plan, readers, assignment, data_ranks=near_ranks, num_bytes=data.cache.bytes, threads=data.cache.fetches)
    if plan.block_shards is None:
        return None
    two_blocks = sum(most_of_shards(reader.manifest, 2 * plan.block_shards) for reader in readers.values())
    room = min(two_blocks, psutil.virtual_memory().available // 4)
    return Ahead(plan, readers, assignment, data_ranks=near_ranks, num_bytes=room, threads=2)


def validation_batches(
    reader: SplitReader,
    *,
    source_index: int,
    sequence_length: int,
    micro_batch_size: int,
    token_num_bytes: np.ndarray,
    max_windows: int | None = None,
    dp_rank: int = 0,
    dp_size: int = 1,
) -> Iterator[Batch]:
    """`max_windows` windows spread evenly over a split, in order, in micro-batches; every dp_size-th is this rank's.

    Spread, because neighbours in a split are often alike (a package's modules, a book). The last micro-batch is
    filled up with its last window, whose copies have no targets, so all have one shape and each window counts once.
    """
    space = WindowSpace(reader, sequence_length)
    end_of_text_id, num_bytes = reader.manifest.end_of_text_id, _compact(token_num_bytes)
    number = min(space.num_samples, max_windows if max_windows is not None else space.num_samples)
    for start in range(dp_rank * micro_batch_size, number, dp_size * micro_batch_size):
        wanted = np.arange(start, start + micro_batch_size)
        window = np.minimum(wanted, number - 1) * space.num_samples // number
        tokens = np.empty((micro_batch_size, sequence_length + 1), reader.manifest.dtype)
        kinds = np.empty(tokens.shape, np.uint8)
        space.read(window, tokens, kinds)
        (batch,) = assemble(
            tokens,
            kinds,
            end_of_text_id=end_of_text_id,
            token_num_bytes=num_bytes,
            source_ids=np.full(micro_batch_size, source_index),
            window_ids=window,
            epochs=np.zeros(micro_batch_size, np.int64),
            micro_batch_size=micro_batch_size,
        )
        surplus = int((wanted >= number).sum())
        if surplus:
            batch.target_mask[-surplus:] = 0
            batch.target_bytes[-surplus:] = 0
            batch.num_padding[-surplus:] = sequence_length
        yield batch


def _check_layout(plan: Plan, micro_batch_size: int, dp_size: int) -> None:
    problems = [
        f"{stage.place}.batch_size: {tread.size} windows cannot be shared by {dp_size} data-parallel ranks in micro-batches "
        f"of {micro_batch_size}; make it a multiple of {dp_size * micro_batch_size}, or change micro_batch_size or the layout"
        for stage in plan.stages
        for tread in stage.batches.treads
        if tread.size % (micro_batch_size * dp_size) and not stage.inherited
    ]
    if problems:
        raise UserError(*problems)


def _common_tokens(readers: Mapping[str, SplitReader]) -> tuple[int, np.dtype]:
    """End-of-text id and token dtype, which sources of one tokenizer share."""
    manifests = {name: reader.manifest for name, reader in readers.items()}
    first, *others = manifests
    for name in others:
        if manifests[name].tokenizer_fingerprint != manifests[first].tokenizer_fingerprint:
            raise UserError(f"sources.{name}: its shards were made with another tokenizer than those of '{first}'; prepare both with one")
    return manifests[first].end_of_text_id, manifests[first].dtype


def _compact(token_num_bytes: np.ndarray) -> np.ndarray:
    """In the smallest dtype: the table is looked up for every token and should stay in the cache."""
    table = np.asarray(token_num_bytes)
    assert table.min(initial=0) >= 0, "a token stands for no less than 0 bytes"
    return table.astype(np.min_scalar_type(int(table.max(initial=0))))
