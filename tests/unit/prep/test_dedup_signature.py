"""Signatures estimate the Jaccard similarity of shingle sets, which is computed exactly beside them."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dedup import Signer, jaccard, shingle_set, signature
from data_prep.dedup.bands import band_hashes, band_layout
from data_prep.dedup.signature import is_empty
from megatron_codemix.config import NearDuplicates

NEAR = NearDuplicates()


def plain_jaccard(left: str, right: str, size: int = 5) -> float:
    """Jaccard similarity of the sets of shingles, the slow way."""
    sets = []
    for text in (left, right):
        found = re.findall(r"[a-z0-9]+", text.lower())
        sets.append({tuple(found[place : place + size]) for place in range(max(len(found) - size + 1, 1))} if found else set())
    union = sets[0] | sets[1]
    return len(sets[0] & sets[1]) / len(union) if union else 0.0


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=40).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, st.integers(1, 6))
def test_jaccard_is_that_of_the_sets(left: str, right: str, size: int) -> None:
    assert jaccard(shingle_set(left, size), shingle_set(right, size)) == plain_jaccard(left, right, size)


def test_long_texts_are_compared_by_a_sample() -> None:
    drawn = random.Random(0)
    common = [f"w{drawn.randrange(10**9)}" for _ in range(40_000)]
    left, right = (" ".join(common + [f"w{drawn.randrange(10**9)}" for _ in range(10_000)]) for _ in range(2))
    sampled = [shingle_set(text, 5, most=4000) for text in (left, right)]
    assert all(len(one.hashes) <= 4000 for one in sampled)
    exact = jaccard(shingle_set(left, 5), shingle_set(right, 5))
    assert exact == plain_jaccard(left, right)
    assert jaccard(*sampled) == pytest.approx(exact, abs=0.03)
    assert jaccard(sampled[0], shingle_set(right, 5)) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.95])
def test_signatures_estimate_without_bias(similarity: float) -> None:
    drawn, signer, estimates, exact = random.Random(1), Signer(NearDuplicates(shingle_words=1)), [], []
    for _ in range(60):
        pool = [f"w{drawn.randrange(10**9)}" for _ in range(600)]
        share = int(300 * 2 * similarity / (1 + similarity))
        left, right = " ".join(pool[:300]), " ".join(pool[300 - share : 600 - share])
        estimates.append(float((signer.sign(left) == signer.sign(right)).mean()))
        exact.append(plain_jaccard(left, right, 1))
    assert np.mean(estimates) == pytest.approx(np.mean(exact), abs=4 * (0.25 / 128 / 60) ** 0.5)


def test_layout_and_case_leave_the_signature_as_it_is() -> None:
    signer = Signer(NEAR)
    assert np.array_equal(signer.sign("def f(a, b):\n    return a + b"), signer.sign("DEF f( a,b ):\n\n\treturn   a+b;"))


def test_a_signature_is_that_of_the_whole_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{number % 97}" for number in range(3000))
    whole, shingles = Signer(NEAR).sign(text), shingle_set(text, 5)
    blocks = signature.word_blocks
    monkeypatch.setattr(signature, "word_blocks", lambda text, overlap: blocks(text, overlap, 40))
    assert np.array_equal(Signer(NEAR).sign(text), whole)
    assert np.array_equal(shingle_set(text, 5).hashes, shingles.hashes)
    assert np.array_equal(Signer(NEAR).sign("one two"), Signer(NEAR).sign("One, two!"))


def test_texts_without_words_have_the_empty_signature() -> None:
    signer = Signer(NEAR)
    assert is_empty(np.stack([signer.sign(""), signer.sign("…!\n"), signer.sign("a")])).tolist() == [True, True, False]
    assert jaccard(shingle_set("", 5), shingle_set("", 5)) == 0.0


def test_signatures_are_the_same_forever() -> None:
    first = Signer(NEAR).sign("the quick brown fox jumps over the lazy dog")
    assert first[:4].tolist() == [3221583145, 3311240286, 567114277, 3632241681]
    assert not np.array_equal(first, Signer(NearDuplicates(seed=1)).sign("the quick brown fox jumps over the lazy dog"))


def test_another_algorithm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "_ALGORITHM", 1)
    with pytest.raises(RuntimeError, match="install the pinned version"):
        Signer(NEAR)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_find_what_the_threshold_asks(permutations: int, threshold: float) -> None:
    bands, rows = band_layout(permutations, threshold)
    assert bands * rows <= permutations
    assert 1 - (1 - threshold**rows) ** bands >= 0.98 or rows == 1


def test_bands_of_equal_values_differ_by_their_number() -> None:
    hashes = band_hashes(np.full((2, 8), 5, np.uint32), 4, 2)
    assert len(np.unique(hashes)) == 4
    assert np.array_equal(hashes[:, 0], hashes[:, 1])
