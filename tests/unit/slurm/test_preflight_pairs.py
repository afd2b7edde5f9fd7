"""Who tries an all-reduce with whom, and who is blamed: every set of bad nodes must be found, and nobody else."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.slurm.preflight import pairs


def _play(nodes, works) -> dict[str, list[str]]:
    """The coordinator's rounds, where `works(first, second)` says how a pair ends."""
    outcomes: dict[tuple[str, str], bool] = {}
    for planned in pairs.rounds(nodes):
        outcomes |= {pair: works(*pair) for pair in planned}
    for _ in range(pairs.RETRIES):
        planned = pairs.retry(nodes, outcomes)
        busy = [node for pair in planned for node in pair]
        assert len(busy) == len(set(busy)), "a node tries one at a time"
        outcomes |= {pair: works(*pair) for pair in planned}
    return pairs.blame(nodes, outcomes)


def _names(count: int) -> list[str]:
    return [f"n{number}" for number in range(count)]


@pytest.mark.parametrize("count", range(3, 17))
def test_rounds_give_every_node_both_roles_and_two_partners(count: int) -> None:
    nodes = _names(count)
    planned = pairs.rounds(nodes)
    assert len(planned) == 2 + count % 2
    for one in planned:
        busy = [node for pair in one for node in pair]
        assert len(busy) == len(set(busy))
    every = [pair for one in planned for pair in one]
    assert sorted(first for first, _ in every) == sorted(second for _, second in every) == sorted(nodes)
    assert all(len({*pair} - {node}) == 1 for pair in every for node in pair)


def test_one_node_has_nobody_to_try_with() -> None:
    assert pairs.rounds(["n1"]) == []
    assert _play(["n1"], lambda first, second: True) == {}


@pytest.mark.parametrize("count", range(3, 9))
def test_one_bad_node_is_found_wherever_it_stands(count: int) -> None:
    nodes = _names(count)
    for bad in nodes:
        assert list(_play(nodes, lambda first, second, bad=bad: bad not in (first, second))) == [bad]


@pytest.mark.parametrize("count", range(3, 9))
def test_a_node_that_cannot_be_connected_to_is_found_and_not_its_partner(count: int) -> None:
    nodes = _names(count)
    for bad in nodes:
        assert list(_play(nodes, lambda first, second, bad=bad: first != bad)) == [bad]


@pytest.mark.parametrize("count", range(3, 9))
def test_a_node_that_cannot_connect_is_found_and_not_its_partner(count: int) -> None:
    nodes = _names(count)
    for bad in nodes:
        assert list(_play(nodes, lambda first, second, bad=bad: second != bad)) == [bad]


def test_two_nodes_that_do_not_reach_each_other_are_both_named() -> None:
    assert _play(["n1", "n2"], lambda first, second: False) == {"n1": ["n2"], "n2": ["n1"]}


def test_of_a_broken_way_between_good_nodes_the_later_goes() -> None:
    nodes = _names(6)
    assert _play(nodes, lambda first, second: {first, second} != {"n1", "n2"}) == {"n2": ["n1"]}


@pytest.mark.parametrize("bad", combinations(_names(8), 2))
def test_two_bad_nodes_are_found(bad: tuple[str, str]) -> None:
    assert set(_play(_names(8), lambda first, second: not {first, second} & set(bad))) == set(bad)


@settings(max_examples=150, deadline=None)
@given(st.integers(4, 40), st.data())
def test_no_bad_node_is_ever_missed_and_healthy_ones_stay_where_most_are_healthy(count: int, data: st.DataObject) -> None:
    nodes = _names(count)
    bad = set(data.draw(st.lists(st.sampled_from(nodes), max_size=max(1, count // 4), unique=True)))
    found = set(_play(nodes, lambda first, second: not {first, second} & bad))
    assert bad <= found
    # a healthy node goes with them only where all it met were bad, or no healthy one was left to try with
    around = {node: {nodes[at - 1], nodes[(at + 1) % count]} for at, node in enumerate(nodes)}
    assert all(around[node] & bad for node in found - bad)


def test_nothing_is_blamed_where_all_works() -> None:
    nodes = _names(7)
    assert _play(nodes, lambda first, second: True) == {}
    assert pairs.retry(nodes, {pair: True for one in pairs.rounds(nodes) for pair in one}) == []
