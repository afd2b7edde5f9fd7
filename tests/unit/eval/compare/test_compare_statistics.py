"""Paired statistics against brute force, against scipy, and under a simulated null."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.compare.statistics import (
    Paired,
    benjamini_hochberg,
    bootstrap_interval,
    detectable,
    holm,
    is_uniform,
    mcnemar_p,
    odds_ratio,
    pair,
    permutation_p,
    standardised,
    uniform_interval,
)

scipy_stats = pytest.importorskip("scipy.stats")


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    expected = scipy_stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_items() -> None:
    assert mcnemar_p(9_900, 10_100) == pytest.approx(scipy_stats.binomtest(9_900, 20_000).pvalue, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3).map(lambda value: value / 7), min_size=1, max_size=9))
def test_few_items_are_permuted_exactly(differences: list[float]) -> None:
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(sum(differences))
    expected = np.mean([abs(float(np.dot(one, differences))) >= observed - 1e-9 for one in signs])
    assert permutation_p(pair(np.array(differences)), 100, _random()) == pytest.approx(expected)


@pytest.mark.parametrize("distinct", [True, False])
def test_drawn_permutations_agree_with_the_exact_test(distinct: bool) -> None:
    differences = _random(3).normal(0.35, 1.0, 19) if distinct else _random(3).integers(-2, 4, 19).astype(float)
    signs = 1 - 2 * ((np.arange(2**19)[:, None] >> np.arange(19)[None, :]) & 1).astype(np.int8)
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    drawn = permutation_p(pair(differences), 40_000, _random(5))
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-4)


def test_binary_permutation_is_mcnemar() -> None:
    differences = np.array([1.0] * 31 + [-1.0] * 15 + [0.0] * 100)
    assert permutation_p(pair(differences), 200_000, _random()) == pytest.approx(mcnemar_p(15, 31), abs=2e-3)


@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_false_positives_are_rare_and_intervals_cover(kind: str) -> None:
    random, rejected, covered, rounds = _random(11), 0, 0, 400
    for _ in range(rounds):
        if kind == "binary":
            differences = random.integers(0, 2, 120).astype(float) - random.integers(0, 2, 120)
        else:
            differences = random.standard_t(4, 60)
        paired = pair(differences)
        rejected += permutation_p(paired, 399, random) <= 0.05
        low, high = bootstrap_interval(paired, 400, random)
        covered += low <= 0.0 <= high
    assert rejected / rounds <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert covered / rounds >= 0.90


def test_clusters_are_kept_together() -> None:
    """Ten copies of each answer are no more evidence than the answer itself."""
    differences = _random(2).normal(0.3, 1.0, 30)
    names = [str(index) for index in np.repeat(np.arange(30), 10)]
    alone, copied = pair(differences), pair(np.repeat(differences, 10), clusters=names)
    naive = pair(np.repeat(differences, 10))
    assert copied.difference == pytest.approx(alone.difference)
    assert permutation_p(copied, 20_000, _random()) == pytest.approx(permutation_p(alone, 20_000, _random()), abs=0.02)
    assert permutation_p(naive, 20_000, _random()) < 0.2 * permutation_p(copied, 20_000, _random())
    widths = [np.diff(bootstrap_interval(one, 4000, _random()))[0] for one in (alone, copied, naive)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.5 * widths[0]


@pytest.mark.parametrize("distinct", [True, False])
def test_interval_matches_the_normal_one(distinct: bool) -> None:
    differences = _random(1).normal(0.1, 1.0, 2000) if distinct else _random(1).integers(-1, 2, 2000).astype(float)
    low, high = bootstrap_interval(pair(differences), 4000, _random())
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_a_ratio_is_resampled_as_a_ratio() -> None:
    """Bits per byte: Σ nats / Σ bytes, so that a long document counts for its length."""
    paired = Paired(np.array([10.0, 0.0, 0.0]), np.array([1000.0, 10.0, 10.0]))
    low, high = bootstrap_interval(paired, 4000, _random())
    assert paired.difference == pytest.approx(10 / 1020)
    assert low == 0.0
    assert high == pytest.approx(0.01, rel=0.02)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    random, found = _random(8), 0
    size = detectable(pair(random.normal(0.0, 1.0, 2000))) * np.sqrt(2000 / 200)
    for _ in range(300):
        found += permutation_p(pair(random.normal(size, 1.0, 200)), 399, random) <= 0.05
    assert found / 300 == pytest.approx(0.8, abs=0.09)


def test_corrections_are_those_of_the_papers() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5]
    assert holm(p_values) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    assert benjamini_hochberg(p_values) == pytest.approx(list(scipy_stats.false_discovery_control(p_values)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_corrections_never_make_a_p_smaller(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(list(scipy_stats.false_discovery_control(p_values)))
    for given_p, family, rate in zip(p_values, holm(p_values), benjamini_hochberg(p_values), strict=True):
        assert given_p <= rate + 1e-12 <= family + 2e-12
        assert family <= 1.0


def test_no_difference_at_all() -> None:
    paired = pair(np.zeros(10))
    assert permutation_p(paired, 100, _random()) == 1.0
    assert bootstrap_interval(paired, 100, _random()) == (0.0, 0.0)
    assert standardised(paired) == 0.0
    assert mcnemar_p(0, 0) == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 50)), min_size=2, max_size=12))
def test_the_effect_never_points_against_the_difference(rows: list[tuple[int, int]]) -> None:
    paired = Paired(*np.array(rows, dtype=np.float64).T)
    assert np.sign(round(standardised(paired), 9)) == np.sign(round(paired.difference, 9))


@pytest.mark.parametrize("count", [1, 4, 200])
def test_items_that_all_agree_leave_room_for_others(count: int) -> None:
    paired = pair(np.zeros(count))
    beyond = scipy_stats.binomtest(0, count).proportion_ci(0.95, method="exact").high
    assert is_uniform(paired)
    assert uniform_interval(paired) == pytest.approx((-beyond, beyond))
    assert np.isinf(detectable(paired))
    low, high = uniform_interval(pair(np.ones(count)))
    assert (low, high) == pytest.approx((1 - 2 * beyond, 1.0))


def test_one_item_that_differs_is_resampled() -> None:
    assert not is_uniform(pair(np.array([0.0, 0.0, 1.0])))
    assert is_uniform(Paired(np.array([0.3, 0.6]), np.array([1.0, 2.0]))), "a ratio that all share"


def test_odds_of_no_item() -> None:
    assert odds_ratio(0, 0) is None
    assert odds_ratio(0, 1) == 3.0
