"""Sorting on disk: the same as in memory, stable, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dedup import ExternalSort

DTYPE = np.dtype([("hash", "<u8"), ("kind", "u1"), ("added", "<u4")])


def _records(rows: list[tuple[int, int]]) -> np.ndarray:
    records = np.zeros(len(rows), DTYPE)
    records["hash"] = [row[0] for row in rows]
    records["kind"] = [row[1] for row in rows]
    records["added"] = np.arange(len(rows))
    return records


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 2**64 - 1]), st.integers(0, 2)), max_size=400),
    st.integers(1, 5),
    st.sampled_from([1, 1000, 1 << 20]),
)
def test_any_memory_gives_the_stable_order(tmp_path_factory, rows: list[tuple[int, int]], step: int, memory: int) -> None:
    records = _records(rows)
    expected = [one.item() for one in records[np.lexsort([records["kind"], records["hash"]])]]
    folder = tmp_path_factory.mktemp("sort") / "runs"
    with ExternalSort(folder, DTYPE, ["hash", "kind"], memory) as sort:
        for start in range(0, len(records), step * 7):
            sort.add(records[start : start + step * 7])
        assert sort.count == len(rows)
        assert [one.item() for block in sort.blocks() for one in block] == expected
    assert not folder.exists()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=300))
def test_groups_are_whole(tmp_path_factory, rows: list[tuple[int, int]]) -> None:
    with ExternalSort(tmp_path_factory.mktemp("sort") / "runs", DTYPE, ["hash", "kind"], 1) as sort:
        sort.add(_records(rows))
        blocks = list(sort.groups("hash", 1000))
    seen = [set(block["hash"].tolist()) for block in blocks]
    assert all(len(block) for block in blocks)
    assert sum(map(len, seen)) == len({row[0] for row in rows})
    assert sum(map(len, blocks)) == len(rows)


def test_large_groups_come_in_pieces_that_begin_alike(tmp_path: Path) -> None:
    with ExternalSort(tmp_path / "runs", DTYPE, ["hash", "added"], 1) as sort:
        sort.add(_records([(1, 0)] * 3 + [(2, 0)] * 250 + [(3, 0)]))
        blocks = [block["added"].tolist() for block in sort.groups("hash", 100)]
    assert [added for block in blocks for added in block if block[0] != 3 or added != 3 or block is blocks[1]] == list(range(254))
    assert [block[0] for block in blocks if 3 in block] == [3, 3, 3]
    assert max(map(len, blocks)) <= 100


def test_many_runs(tmp_path: Path) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    records = np.zeros(len(hashes), DTYPE)
    records["hash"], records["added"] = hashes, np.arange(len(hashes))
    with ExternalSort(tmp_path / "runs", DTYPE, ["hash"], 200_000) as sort:
        sort.add(records)
        merged = np.concatenate(list(sort.blocks()))
        assert len(list((tmp_path / "runs").iterdir())) > 40
    order = np.argsort(hashes, kind="stable")
    assert np.array_equal(merged["added"], order)


def test_what_a_killed_run_left_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run-00000.bin").write_bytes(b"\xff" * DTYPE.itemsize * 100)
    with ExternalSort(tmp_path / "runs", DTYPE, ["hash"]) as sort:
        sort.add(_records([(3, 0), (1, 0)]))
        assert [one["hash"] for block in sort.blocks() for one in block] == [1, 3]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExternalSort(tmp_path / "runs", DTYPE, ["hash"], 1) as sort:
        monkeypatch.setattr(ExternalSort, "_path", lambda self, run: Path("/dev/full"))
        with pytest.raises(OSError, match="No space left"):
            sort.add(_records([(1, 0)] * 1000))
