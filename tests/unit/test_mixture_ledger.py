"""Ledger: counted, mergeable, independent of order. Lineage: append-only, without gaps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Interval, Ledger, Lineage

SOURCES = ("code", "text", "unused")
windows = st.tuples(st.integers(0, 1), st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 8))


def batch(rows):
    """A batch of windows of 8 positions from (source, window, epoch, targets) rows."""
    source, window, epoch, targets = np.array(rows, np.int64).reshape(-1, 4).T
    return SimpleNamespace(
        tokens=np.zeros((len(source), 8), np.int64),
        source_ids=source,
        window_ids=window,
        epochs=epoch,
        target_mask=(np.arange(8) < targets[:, None]).astype(np.int64),
        num_padding=(8 - targets) // 2,
        num_excluded=8 - targets - (8 - targets) // 2,
        target_bytes=3 * targets,
    )


def counted(rows, size=3):
    ledger = Ledger(SOURCES)
    ledger.count(batch(rows[at : at + size]) for at in range(0, len(rows), size))
    return ledger


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(windows, max_size=40), data=st.data())
def test_order_batches_and_ranks_do_not_matter(rows, data):
    whole = counted(rows)
    shuffled = data.draw(st.permutations(rows))
    assert counted(shuffled, data.draw(st.integers(1, 9))).as_json() == whole.as_json()
    cut = data.draw(st.integers(0, len(rows)))
    merged = counted(rows[:cut])
    merged.merge(counted(rows[cut:]))
    assert merged.as_json() == whole.as_json()
    for number, name in enumerate(SOURCES):
        mine = [row for row in rows if row[0] == number]
        targets = sum(row[3] for row in mine)
        expected = {
            "windows": len(mine),
            "tokens": 8 * len(mine),
            "targets": targets,
            "padding": sum((8 - row[3]) // 2 for row in mine),
            "excluded": sum(8 - row[3] - (8 - row[3]) // 2 for row in mine),
            "bytes": 3 * targets,
        }
        assert {key: whole.of(name)[key] for key in expected} == expected
    assert whole.target_tokens == sum(row[3] for row in rows)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(windows, min_size=1, max_size=30), data=st.data())
def test_a_dropped_repeated_or_exchanged_window_changes_the_hash(rows, data):
    hashes = {name: counted(rows).of(name)["hash"] for name in SOURCES}
    index = data.draw(st.integers(0, len(rows) - 1))
    source, window, epoch, targets = rows[index]
    name = SOURCES[source]
    dropped = rows[:index] + rows[index + 1 :]
    assert counted(dropped).of(name)["hash"] != hashes[name]
    assert counted([*rows, rows[index]]).of(name)["hash"] != hashes[name]
    for other in ((source, window + 1, epoch, targets), (source, window, epoch + 1, targets)):
        assert counted([*dropped, other]).of(name)["hash"] != hashes[name]


def test_a_window_dropped_and_another_repeated_is_seen():
    rows = [(0, number, 0, 8) for number in range(100)]
    assert counted(rows).of("code")["hash"] != counted([*rows[1:], rows[50]]).of("code")["hash"]


def test_ledger_round_trip():
    ledger = counted([(0, 5, 0, 8), (1, 7, 2, 3)])
    stored = json.loads(json.dumps(ledger.as_json()))
    assert Ledger.from_json(stored).as_json() == stored
    again = Ledger.from_json(stored)
    again.count([batch([(0, 6, 0, 8)])])
    assert again.as_json() == counted([(0, 5, 0, 8), (1, 7, 2, 3), (0, 6, 0, 8)]).as_json()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {"format_version": 2, "sources": {"a": {}}},
        {"format_version": 1, "sources": {"a": {}}},
        {"format_version": 1, "sources": {"a": {"windows": "x", "tokens": 1, "targets": 1, "padding": 0, "bytes": 1, "hash": "0" * 32}}},
        {"format_version": 1, "sources": {"a": {"windows": 1, "tokens": 1, "targets": 1, "padding": 0, "bytes": 1, "hash": "zz"}}},
    ],
)
def test_a_broken_ledger_is_refused(broken):
    with pytest.raises(UserError, match=r"^here: "):
        Ledger.from_json(broken, "here")


@settings(max_examples=60, deadline=None)
@given(before=st.lists(windows, max_size=20), behind=st.lists(windows, max_size=20), order=st.permutations(range(3)), data=st.data())
def test_sources_that_change_places_between_two_starts_are_counted_by_name(before, behind, order, data):
    """Two data-parallel ranks: the first has the past, both go on under the new order, and a checkpoint merges them."""
    places = {old: new for new, old in enumerate(order)}
    names = [SOURCES[old] for old in order]
    moved = [(places[source], *rest) for source, *rest in behind]
    cut = data.draw(st.integers(0, len(moved)))
    stored = json.loads(json.dumps(counted(before).as_json()))
    first, second, whole = Ledger.from_json(stored, sources=names), Ledger(names), Ledger(names)
    first.count([batch(moved[:cut])])
    second.count([batch(moved[cut:])])
    for part in (first, second):
        whole.merge(part)
    assert whole.as_json() == counted([*before, *behind]).as_json()
    assert list(whole.as_json()["sources"]) == names


@pytest.mark.parametrize("names", [SOURCES[:2], (*SOURCES, "more"), ("code", "text", "other")])
def test_a_ledger_of_other_sources_is_refused(names):
    with pytest.raises(UserError, match=r"^here: counts the sources code, text, unused, the run has "):
        Ledger.from_json(counted([]).as_json(), "here", names)


def test_lineage_grows_without_gaps():
    lineage = Lineage()
    assert (lineage.step, lineage.next_attempt()) == (0, 0)
    lineage.add_interval("p", 0, 10)
    lineage.add_interval("p", 10, 20)
    assert lineage.intervals == [Interval("p", 0, 20, 0)], "one attempt is one interval"
    lineage.add_interval("p", 20, 30, attempt=lineage.next_attempt(), overrides=["a=1"])
    lineage.skip(30, 32, "loss spike")
    lineage.add_interval("p", 32, 40, attempt=1, overrides=["a=1"])
    lineage.add_interval("p", 40, 40, attempt=1, overrides=["a=1"])
    assert [(one.first, one.end, one.attempt) for one in lineage.intervals] == [(0, 20, 0), (20, 30, 1), (32, 40, 1)]
    assert lineage.step == 40
    for wrong in (39, 41):
        with pytest.raises(ValueError, match="do not follow"):
            lineage.add_interval("p", wrong, 50)
    stored = json.loads(json.dumps(lineage.as_json()))
    assert Lineage.from_json(stored).as_json() == stored
    assert stored["plan"] == "p"


def test_a_broken_lineage_is_refused():
    good = Lineage()
    good.add_interval("p", 0, 10)
    good.add_interval("p", 10, 20, attempt=1)
    stored = good.as_json()
    gap = {**stored, "intervals": [stored["intervals"][0], {**stored["intervals"][1], "first": 12}]}
    overlap = {**stored, "intervals": [stored["intervals"][0], {**stored["intervals"][1], "first": 8}]}
    wrong = ({"plan": 5}, {"overrides": [1]}, {"overrides": None}, {"changes": "abc"}, {"first": "x"})
    typed = [{**stored, "intervals": [{**stored["intervals"][0], **fields}]} for fields in wrong]
    why = {**stored, "skipped": [{"first": 20, "end": 21, "why": 3}]}
    for broken in (None, {}, {**stored, "format_version": 9}, {"format_version": 1}, gap, overlap, *typed, why):
        with pytest.raises(UserError, match=r"^here: "):
            Lineage.from_json(broken, "here")
