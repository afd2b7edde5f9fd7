"""The ledger: what a run consumed, counted from the batches themselves, never derived from the plan.

Per source: windows, window tokens, target tokens, padding tokens, UTF-8 bytes of the targets, tokens that an objective
left out of the targets, and a hash over the (epoch, window) pairs: sum and exclusive-or of a 64-bit mix of each pair.
Both are independent of order and add up over ranks and attempts; a dropped or repeated window changes both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from megatron_codemix.errors import UserError

FIELDS = ("windows", "tokens", "targets", "padding", "bytes", "excluded")
_REMEDY = "it was altered; use another checkpoint"


class CountedBatch(Protocol):
    """What the ledger reads of a batch of B windows of S positions; anything numpy can read (CPU tensors too)."""

    tokens: Any
    """(B, S)."""
    source_ids: Any
    """int (B,): index of the source."""
    window_ids: Any
    """int (B,): window within the source."""
    epochs: Any
    """int (B,)."""
    target_mask: Any
    """int (B, S): 1 where the label counts."""
    num_padding: Any
    """int (B,): positions whose label is none."""
    num_excluded: Any
    """int (B,): positions whose label is a token that the objective leaves out."""
    target_bytes: Any
    """int (B,): UTF-8 bytes of the labels that count."""


def mix(epochs: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each (epoch, window): uint64 of the same shape (the finaliser of SplitMix64, twice)."""
    return finalise(finalise(np.asarray(epochs).astype(np.uint64)) + np.asarray(windows).astype(np.uint64))


def finalise(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output for the state x (Steele, Lea and Flood 2014): uint64 of the same shape."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Ledger:
    """Counts per source. Mutable; one per rank, merged when a checkpoint is written."""

    def __init__(self, sources: Sequence[str]) -> None:
        """sources: names, in the order that a batch's source_ids index (`Plan.sources`)."""
        self.sources = tuple(sources)
        self._counts = np.zeros((len(self.sources), len(FIELDS)), np.int64)
        self._hashes = np.zeros((len(self.sources), 2), np.uint64)

    def count(self, batches: Iterable[CountedBatch]) -> None:
        """Add the windows of some batches (before they are moved to another device)."""
        for batch in batches:
            targets = np.asarray(batch.target_mask).sum(axis=1, dtype=np.int64)
            width = np.asarray(batch.tokens).shape[1]
            source_ids = np.asarray(batch.source_ids)
            columns = [np.ones_like(source_ids), np.full_like(source_ids, width), targets]
            columns += [batch.num_padding, batch.target_bytes, batch.num_excluded]
            self.add(source_ids, batch.window_ids, batch.epochs, np.stack([np.asarray(column) for column in columns], axis=1))

    def add(self, source_ids: Any, window_ids: Any, epochs: Any, counts: np.ndarray) -> None:
        """Add B windows: ints (B,) each, and counts int64 (B, 6), the columns of FIELDS."""
        source_ids = np.asarray(source_ids)
        hashes = mix(np.asarray(epochs), np.asarray(window_ids))
        np.add.at(self._counts, source_ids, counts)
        np.add.at(self._hashes[:, 0], source_ids, hashes)
        np.bitwise_xor.at(self._hashes[:, 1], source_ids, hashes)

    def merge(self, other: Ledger) -> None:
        """Add what another rank or attempt counted."""
        assert other.sources == self.sources, "ledgers of one run have the same sources"
        self._counts += other._counts
        self._hashes[:, 0] += other._hashes[:, 0]
        self._hashes[:, 1] ^= other._hashes[:, 1]

    def extended(self, sources: Sequence[str]) -> Ledger:
        """The same counts under these names, which may be more. Raises UserError where one that was counted is not among them."""
        lost = [name for name in self.sources if name not in sources]
        if lost:
            raise UserError(f"sources: '{lost[0]}' has been read already, and its ledger goes on; declare it as before")
        ledger = Ledger(sources)
        rows = [ledger.sources.index(name) for name in self.sources]
        ledger._counts[rows], ledger._hashes[rows] = self._counts, self._hashes
        return ledger

    @property
    def target_tokens(self) -> int:
        """Targets over all sources."""
        return int(self._counts[:, FIELDS.index("targets")].sum())

    def of(self, source: str) -> dict[str, Any]:
        """FIELDS and "hash" of one source."""
        row = self.sources.index(source)
        digest = "".join(f"{int(value):016x}" for value in self._hashes[row])
        return {**dict(zip(FIELDS, self._counts[row].tolist(), strict=True)), "hash": digest}

    def as_json(self) -> dict[str, Any]:
        """ledger.json of a checkpoint. "hash": sum, then exclusive-or, 16 hexadecimal digits each. "excluded" where it is not 0."""
        counted = {source: self.of(source) for source in self.sources}
        without = {source: {key: value for key, value in entry.items() if key != "excluded" or value} for source, entry in counted.items()}
        return {"format_version": 1, "sources": without}

    @classmethod
    def from_json(cls, value: Any, where: str = "ledger.json", sources: Sequence[str] | None = None) -> Ledger:
        """Reads what `as_json` gave; raises UserError naming `where` for anything else.

        sources: the order that the ledger shall have, which batches index; None: the one in which it was written.
        Raises UserError where its names are others.
        """
        counted = value.get("sources") if isinstance(value, Mapping) else None
        if not isinstance(counted, Mapping) or not counted or value.get("format_version") != 1:
            raise UserError(f"{where}: not a ledger of format_version 1; {_REMEDY}")
        ledger = cls(tuple(counted) if sources is None else sources)
        if set(counted) != set(ledger.sources):
            raise UserError(f"{where}: counts the sources {', '.join(counted)}, the run has {', '.join(ledger.sources)}; {_REMEDY}")
        for row, name in enumerate(ledger.sources):
            entry = counted[name]
            try:
                ledger._counts[row] = [int(entry[field] if field != "excluded" else entry.get(field, 0)) for field in FIELDS]
                digest = entry["hash"]
                ledger._hashes[row] = [int(digest[:16], 16), int(digest[16:], 16)]
            except (KeyError, TypeError, ValueError, OverflowError):
                raise UserError(f"{where}: the entry of '{name}' is malformed; {_REMEDY}") from None
        return ledger
