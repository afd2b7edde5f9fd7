"""pass@k against its definition and against the reference implementation's formula; aggregates; standard errors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.code.estimator import check_k, incremental_metrics, pass_at_k, pass_metrics
from eval.tasks.choices import clustered_error
from megatron_codemix.errors import UserError

NCK = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


def reference(n: int, c: int, k: int) -> float:
    """openai/human-eval, evaluation.py."""
    if n - c < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


@settings(max_examples=300, deadline=None)
@given(NCK)
def test_equals_the_reference_formula_and_the_definition(nck):
    n, c, k = nck
    assert pass_at_k(n, c, k) == reference(n, c, k)
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_is_the_share_of_subsets_that_hold_a_sample_that_passed(nck):
    n, c, k = nck
    subsets = [bits for bits in range(1 << n) if bits.bit_count() == k]
    hit = sum(bool(bits & ((1 << c) - 1)) for bits in subsets)
    assert pass_at_k(n, c, k) == pytest.approx(hit / len(subsets), abs=1e-12)


def test_six_samples_three_right():
    assert pass_at_k(6, 3, 1) == 0.4999999999999999  # the README of openai/human-eval


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (10, 11, 1), (10, -1, 1), (10, 3, 0), (0, 0, 1)])
def test_outside_of_its_domain_there_is_no_estimate(n, c, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def test_fewer_samples_than_k_are_refused_up_front():
    with pytest.raises(UserError, match="pass@100 needs samples of at least 100, not 20"):
        check_k([1, 100], 20, 0.8, "x")
    with pytest.raises(UserError, match="20 samples at temperature 0 are the same one"):
        check_k([1], 20, 0.0, "x")
    check_k([1, 10], 20, 0.8, "x")


def test_incremental_aggregates():
    """Two prompts of a, one of b; worked by hand."""
    metrics = incremental_metrics([("a", 2, 2), ("a", 2, 0), ("b", 2, 1)], [1, 2])
    assert metrics["macro_pass@1"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["micro_pass@1"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert metrics["macro_pass@2"] == pytest.approx((1 + 0 + 1) / 3)
    assert metrics["micro_pass@2"] == pytest.approx((1 - 1 / 6 + 1) / 2)
    assert metrics["problems"] == 2


def test_items_alone_have_the_usual_error_and_clusters_have_theirs():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    alone = pass_metrics([(str(index), 1, int(value)) for index, value in enumerate(values)], [1])
    assert alone["pass@1_stderr"] == pytest.approx(clustered_error(list("abcde"), values))
    assert alone["pass@1_low"] < alone["pass@1"] < alone["pass@1_high"]
    twice = pass_metrics([(str(index), 1, int(value)) for index, value in enumerate(values) for _ in range(3)], [1])
    assert twice["pass@1_stderr"] == pytest.approx(alone["pass@1_stderr"])  # copies bring no knowledge
    assert twice["pass@1_high"] - twice["pass@1_low"] == pytest.approx(alone["pass@1_high"] - alone["pass@1_low"], abs=0.25)
    assert twice["pass@1_high"] - twice["pass@1_low"] > 0.6
    assert clustered_error(["a", "a"], [0.0, 1.0]) == 0.0
