"""Who is slow, who holds most memory, and when garbage is collected."""

from __future__ import annotations

import gc

import pytest
import torch

from megatron_codemix.train.guards import Garbage, Pace, RankReport, RankState


def test_the_slowest_rank_is_named():
    states = [RankState(f"node{rank // 2}", seconds, 0.01, (rank + 1) << 30, None) for rank, seconds in enumerate([0.2, 0.2, 0.3, 0.2])]
    report = RankReport(states)
    assert (report.slowest, report.factor) == (2, pytest.approx(1.5))
    memory, slow = report.words()
    assert memory == "most memory held by a rank so far: 4.00 GiB of the host (rank 3)"
    assert slow == "slowest rank: 2 on node1, 1.50 × the median of 4 ranks (0.3 s of own work a step, 0.01 s of it waiting for data)"
    line = report.as_json()
    assert (line["slowest"], line["host"], line["host_memory"], line["device_memory"]) == (2, "node1", {"rank": 3, "bytes": 4 << 30}, None)


def test_ranks_that_are_alike_are_not_worth_a_line():
    states = [RankState("node", 0.2 + rank / 1000, 0.0, 1 << 30, (5 - rank) << 30) for rank in range(3)]
    assert RankReport(states).words() == ["most memory held by a rank so far: 5.00 GiB of a device (rank 0), 1.00 GiB of the host (rank 0)"]


def test_a_pace_is_the_mean_since_the_report_before():
    pace = Pace(torch.device("cpu"))
    for own in (1.0, 3.0):
        pace.add(own, 0.5)
    state = pace.state()
    assert (state.seconds, state.loader_seconds, state.device_bytes) == (2.5, 0.5, None)
    assert state.host_bytes > 10 << 20
    pace.add(7.0, 0.0)
    assert pace.state().seconds == 7.0
    assert pace.state().seconds == 0.0


class _Knot:
    """Garbage that only a collection finds."""

    alive = 0

    def __init__(self) -> None:
        self.own = self
        _Knot.alive += 1

    def __del__(self) -> None:
        _Knot.alive -= 1


def test_garbage_is_collected_at_its_steps_and_at_no_other_time():
    gc.collect()
    with Garbage(3) as garbage:
        assert not gc.isenabled()
        seen = []
        for done in range(1, 7):
            _Knot()
            garbage.step(done)
            seen.append(_Knot.alive)
        assert seen == [1, 2, 0, 1, 2, 0]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_collection_is_given_back_after_an_error():
    with pytest.raises(RuntimeError), Garbage(1):
        raise RuntimeError
    assert gc.isenabled()


def test_without_the_setting_python_collects_as_it_likes():
    with Garbage(0) as garbage:
        garbage.step(1)
        assert gc.isenabled()
