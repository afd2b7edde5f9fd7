"""Words as hashes: which texts have the same, and that the vectorised form agrees with a plain one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.words import mixed, windows, word_blocks, words


def _spelled(text: str) -> list[str]:
    found = words(text)
    return [text[start:end] for start, end in zip(found.starts.tolist(), found.ends.tolist())]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        (" \n\t,.;\0", []),
        ("A", ["A"]),
        ("def f(x_1):\n\treturn x_1+2", ["def", "f", "x", "1", "return", "x", "1", "2"]),
        ("naïve Straße – “Käse”…", ["naïve", "Straße", "Käse"]),
        ("e\u0301te\u0301 हिन्दी", ["e\u0301te\u0301", "हिन्दी"]),
        ("東京 and タワー", ["東", "京", "and", "タ", "ワ"]),
        ("\U00020000x", ["\U00020000", "x"]),
        ("a\ud800b", ["a", "b"]),
    ],
)
def test_words_are_runs_of_letters_and_digits(text: str, expected: list[str]) -> None:
    assert [one for one in _spelled(text) if one != "ー"] == expected


def test_case_layout_and_script_of_the_rest_do_not_matter() -> None:
    plain = words("the answer is FORTY two").hashes
    assert np.array_equal(plain, words("The\n\n answer... is\tforty-two!").hashes)
    assert np.array_equal(plain, words("“The” answer is forty—two 、").hashes)
    assert np.array_equal(words("ÜBUNG").hashes, words("übung").hashes)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("abAB01 _-\n"), max_size=300))
def test_ascii_agrees_with_a_regular_expression(text: str) -> None:
    assert _spelled(text) == re.findall(r"[A-Za-z0-9]+", text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_both_paths_give_the_same_hashes(text: str) -> None:
    with_other = words(text + " é")
    assert np.array_equal(words(text).hashes, with_other.hashes[:-1])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 95, 96, 97, 300])
def test_every_byte_of_a_word_counts(size: int) -> None:
    base = "a" * size
    variants = {base, base + "a"} | {base[:place] + "b" + base[place + 1 :] for place in range(size)}
    assert len({int(words(one).hashes[0]) for one in variants}) == len(variants)
    assert int(words(base).hashes[0]) == int(words(f"x {base} y").hashes[1])


def test_no_collisions_among_short_words() -> None:
    text = " ".join(f"{one:x}" for one in range(200_000))
    assert len(np.unique(words(text).hashes)) == 200_000


def test_hashes_are_the_same_forever() -> None:
    assert words("codemix codemix-corpora").hashes.tolist() == [14599626412852151173, 14599626412852151173, 8499376864564029561]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab é東-\n"), max_size=120), st.integers(1, 40), st.integers(0, 3))
def test_blocks_together_are_the_whole(text: str, characters: int, overlap: int) -> None:
    longest = max((len(one) for one in _spelled(text)), default=0)
    whole, hashes, starts = words(text), [], []
    for number, block in enumerate(word_blocks(text, overlap, max(characters, longest))):
        skipped = min(overlap, len(hashes)) if number else 0
        assert block.hashes[:skipped].tolist() == hashes[len(hashes) - skipped :]
        hashes += block.hashes[skipped:].tolist()
        starts += block.starts[skipped:].tolist()
    assert hashes == whole.hashes.tolist()
    assert starts == whole.starts.tolist()


def test_windows_depend_on_the_order_and_on_every_word() -> None:
    hashes = words("one two three four two one").hashes
    assert len(windows(hashes, 7)) == 0
    assert windows(hashes, 6).shape == (1,)
    pairs = windows(hashes, 2)
    assert len(np.unique(pairs)) == 5
    assert windows(hashes[1:3], 2)[0] == pairs[1]


def test_mixing_is_a_permutation() -> None:
    assert len(np.unique(mixed(np.arange(100_000, dtype=np.uint64)))) == 100_000


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 10, 13, 20, 32])
def test_windows_are_the_polynomial(size: int) -> None:
    hashes = words(" ".join(f"w{number % 11}" for number in range(40))).hashes
    plain = []
    for start in range(len(hashes) - size + 1):
        total = 0
        for one in hashes[start : start + size].tolist():
            total = (total * 0x9E3779B97F4A7C15 + one) % 2**64
        plain.append(total)
    assert windows(hashes, size).tolist() == mixed(np.array(plain, np.uint64)).tolist()
