"""Structured arrays sorted on disk, in bounded memory, with numpy alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MEMORY_BYTES = 128 << 20
"""Memory of a sort, where its maker says nothing else."""


class ExternalSort:
    """Takes records of one structured dtype in any order and gives them back in the order of some of their fields.

    folder: receives the sorted runs; made when the first is written, removed with them at the end of the `with` block.
    keys: fields to sort by, the most significant first. Records that are equal in all of them stay in the order in which they
    were added, so the result does not depend on `memory_bytes`, which bounds what is held in memory (default: `MEMORY_BYTES`).
    Raises OSError when the disk is full.
    """

    def __init__(self, folder: Path, dtype: np.dtype, keys: Sequence[str], memory_bytes: int | None = None) -> None:
        self.dtype, self.keys, self.folder = np.dtype(dtype), tuple(keys), Path(folder)
        # A run, the places of its sorted records and its sorted copy are in memory together.
        self._run_records = max(16, (memory_bytes or MEMORY_BYTES) // (3 * self.dtype.itemsize + 8 * len(self.keys)))
        self._parts: list[np.ndarray] = []
        self._held = 0
        self._runs: list[int] = []
        self.count = 0
        """Records added so far."""

    def __enter__(self) -> ExternalSort:
        shutil.rmtree(self.folder, ignore_errors=True)
        return self

    def __exit__(self, *_) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, records: np.ndarray) -> None:
        """Take (n,) records of the dtype."""
        records = np.ascontiguousarray(records, self.dtype)
        self.count += len(records)
        while len(records):
            taken = records[: self._run_records - self._held]
            records = records[len(taken) :]
            self._parts.append(taken.copy())
            self._held += len(taken)
            if self._held == self._run_records:
                self._write_run()

    def blocks(self) -> Iterator[np.ndarray]:
        """All records in order, in arrays of no particular length; may be called once, behind the last `add`."""
        if not self._runs:
            if self._held:
                yield self._sorted_parts()
            return
        if self._held:
            self._write_run()
        yield from self._merged()

    def groups(self, field: str, most: int) -> Iterator[np.ndarray]:
        """As `blocks`, but no array ends inside a group of records that are equal in `field`, the first key.

        Of a group of more than `most` records come several arrays, each of which begins with the group's first record.
        """
        assert field == self.keys[0]
        group = np.empty(0, self.dtype)
        for block in self.blocks():
            records = np.concatenate([group, block])
            start = int(np.searchsorted(records[field], records[field][-1], "left"))
            if start:
                yield records[:start]
            group = records[start:]
            while len(group) > most > 1:
                yield group[:most]
                group = np.concatenate([group[:1], group[most:]])
        if len(group):
            yield group

    def _sorted_parts(self) -> np.ndarray:
        parts, self._parts, self._held = self._parts, [], 0
        records = parts[0] if len(parts) == 1 else np.concatenate(parts)
        parts.clear()
        return _sorted(records, self.keys)

    def _write_run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        records = self._sorted_parts()
        with open(self._path(len(self._runs)), "wb") as handle:
            handle.write(records.data)
        self._runs.append(len(records))

    def _path(self, run: int) -> Path:
        return self.folder / f"run-{run:05d}.bin"

    def _merged(self) -> Iterator[np.ndarray]:
        """Of every run a piece is in memory. What is not above the smallest of the pieces' last records can be told to be in order."""
        piece = max(1, self._run_records // (2 * len(self._runs)))
        read = [0] * len(self._runs)
        pieces: list[np.ndarray] = [np.empty(0, self.dtype)] * len(self._runs)
        alive = list(range(len(self._runs)))
        while alive:
            for run in alive:
                if not len(pieces[run]):
                    pieces[run] = self._read(run, read[run], piece)
                    read[run] += len(pieces[run])
            unfinished = [run for run in alive if read[run] < self._runs[run]]
            bound_run, bound = -1, None
            if unfinished:
                lasts = np.stack([pieces[run][-1] for run in unfinished])
                order = np.lexsort([lasts[name] for name in reversed(self.keys)])
                bound_run, bound = unfinished[order[0]], lasts[order[0]]
            taken = []
            for run in alive:
                size = len(pieces[run])
                if bound is not None:
                    # Equal records of later runs wait for those of the run that is not read to its end: they were added later.
                    size = _place(pieces[run], self.keys, bound, "right" if run <= bound_run else "left")
                taken.append(pieces[run][:size])
                pieces[run] = pieces[run][size:]
            yield _sorted(np.concatenate(taken), self.keys)
            alive = [run for run in alive if len(pieces[run]) or read[run] < self._runs[run]]

    def _read(self, run: int, start: int, most: int) -> np.ndarray:
        count = min(most, self._runs[run] - start)
        records = np.fromfile(self._path(run), self.dtype, count, offset=start * self.dtype.itemsize)
        assert len(records) == count, f"{self._path(run)} has become shorter"
        return records


def _sorted(records: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    return records[np.lexsort([records[name] for name in reversed(keys)])]


def _place(records: np.ndarray, keys: Sequence[str], bound: np.void | np.ndarray, side: str) -> int:
    """Where `bound` would be inserted in sorted records: `numpy.searchsorted` for several keys."""
    low, high = 0, len(records)
    for name in keys:
        column = records[name][low:high]
        low, high = low + int(np.searchsorted(column, bound[name], "left")), low + int(np.searchsorted(column, bound[name], "right"))
    return low if side == "left" else high
