"""The order of an epoch: a bijection for every n, fixed by its key, and well mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.mixture import Permutation, epoch_order, order_key


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 5000), seed=st.integers(0, 2**63), source=st.text(max_size=8), epoch=st.integers(0, 10**6))
def test_every_index_exactly_once(n, seed, source, epoch):
    image = Permutation(n, order_key(seed, source, epoch))(np.arange(n))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 255, 256, 257, 1 << 16, (1 << 16) + 1])
def test_powers_of_two_and_their_neighbours(n):
    image = Permutation(n, order_key(1, "code", 0))(np.arange(n))
    assert np.array_equal(np.sort(image), np.arange(n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1 << 30, (1 << 62) - 1), start=st.integers(0, 1 << 29))
def test_huge_domains_need_no_table(n, start):
    indices = np.arange(start, start + 1000)
    image = Permutation(n, order_key(7, "text", 3))(indices)
    assert len(set(image.tolist())) == 1000
    assert image.min() >= 0
    assert image.max() < n


def test_a_prefix_does_not_depend_on_what_is_asked_with_it():
    order = Permutation(1000, order_key(5, "code", 0))
    whole = order(np.arange(1000))
    assert [int(order(np.array([i]))[0]) for i in (0, 17, 999)] == whole[[0, 17, 999]].tolist()
    assert np.array_equal(order(np.arange(24).reshape(4, 6)), whole[:24].reshape(4, 6))


def test_the_order_never_changes_between_versions():
    """Golden: a run of an older version must continue with the same samples."""
    assert Permutation(10, order_key(0, "code", 0))(np.arange(10)).tolist() == [5, 3, 8, 6, 9, 7, 4, 1, 0, 2]
    assert Permutation(10**12, order_key(1, "text", 2))(np.arange(3)).tolist() == [269477990509, 122960207907, 139452292882]


def test_indices_outside_are_refused():
    order = Permutation(10, order_key(0, "code", 0))
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            order(np.array([wrong]))
    with pytest.raises(ValueError, match="n must be"):
        Permutation(0, order_key(0, "code", 0))


def test_keys_differ_by_seed_source_and_epoch():
    orders = [
        epoch_order(1000, *key)(np.arange(1000)) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (1, "0", 0), (10, "", 0))
    ]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Two random permutations agree at about one place.
            assert (one == other).sum() < 12


@pytest.mark.parametrize("n", [7, 100, 4096, 100_003])
def test_well_mixed(n):
    image = Permutation(n, order_key(3, "code", 0))(np.arange(n))
    assert (image == np.arange(n)).sum() < 12, "hardly any fixed points"
    assert (np.diff(image) == 1).sum() < 12, "neighbours do not stay neighbours"
    if n >= 100:
        bound = 5 / np.sqrt(n)
        assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < bound
        assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < bound
        assert abs(np.corrcoef(image[:-1] % 2, image[1:] % 2)[0, 1]) < bound, "low bits are mixed too"


@pytest.mark.parametrize("n", [5, 12, 64, 1000])
def test_each_place_is_uniform_over_keys(n):
    """Chi-square, over 6,000 keys, of the images of two places and of the difference between them."""
    keys, cells = 6_000, min(n, 50)
    pairs = np.array([Permutation(n, order_key(seed, "s", 0))(np.array([0, n // 2])) for seed in range(keys)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    for values, number in ((pairs[:, 0], n), (pairs[:, 1], n), ((pairs[:, 1] - pairs[:, 0]) % n - 1, n - 1)):
        counts = np.bincount(values * cells // n, minlength=cells)
        expected = np.bincount(np.arange(number) * cells // n, minlength=cells) * keys / number
        possible = expected > 0
        statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        assert statistic < cells + 5 * np.sqrt(2 * cells)
