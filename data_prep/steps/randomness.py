"""Whether a string was drawn at random, or is made of words and names: the odds of its pairs of neighbouring characters.

A token differs from a name in what follows what. In words, 212 of the 676 pairs of letters make up 93 % of all; letters and digits
hardly alternate; capitals stand in front of small letters, or together. Each pair has odds (in bits) of a random string against a
name, estimated on the identifiers and string literals of open-source programs and on strings drawn evenly from the usual
alphabets: those of hexadecimal, base32, base36, base62 and base64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import product
from operator import add

LEAST_BITS = 6.0
"""Odds from which a string counts as random: above those of all but a few names, below those of 97 % of 12 random letters and digits."""

_GROUPS = """
abcdgilmnprstuvy baeilou cacehiklortu dadeiosu eacdefglmnpqrstvwxy faefioru gaehioru haeimot iabcdefglmnoprstvz j kei ladeilostuy
mabeimopsu nacdefginostuv obcdglmnoprstuvw paeiloprtuy qu racdegimnorstuy sacehiopstu tacehilorstuy uabceilmnprstv vaei wai xpt yp ze
"""
_FOLLOWERS = {group[0]: group[1:] for group in _GROUPS.split()}
"""Letter → those that follow it in the commonest pairs."""
_COMMON, _RARE = -2.2, 2.2
_CAPITAL_COMMON, _CAPITAL_RARE = -0.7, 4.1
"""A capital and a small letter behind it."""
_SMALL_CAPITAL = 1.5
_LETTER_DIGIT, _DIGIT_LETTER = 3.8, 4.4
_SEPARATOR, _SYMBOL = -1.0, 1.5
_NAME_SEPARATORS = frozenset("_-./: ")
_PRINTABLE = [chr(code) for code in range(33, 127)]


def randomness(value: str) -> float:
    """Bits for `value` having been drawn at random rather than made of words. Pairs of digits say nothing: numbers have them too."""
    odds = _odds()
    return sum(odds.get(pair, 0.0) for pair in map(add, value, value[1:]))


def entropy(value: Iterable[str]) -> float:
    """Bits per character (Shannon) of the characters of a value."""
    counts = Counter(value).values()
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts)


@cache
def _odds() -> dict[str, float]:
    return {left + right: _pair(left, right) for left, right in product(_PRINTABLE, repeat=2)}


def _pair(left: str, right: str) -> float:
    if left.isalpha() and right.isalpha():
        common = right.lower() in _FOLLOWERS[left.lower()]
        if left.islower() and right.isupper():
            return _SMALL_CAPITAL
        if left.isupper() and right.islower():
            return _CAPITAL_COMMON if common else _CAPITAL_RARE
        return _COMMON if common else _RARE
    if left.isalnum() and right.isalnum():
        return 0.0 if left.isdigit() and right.isdigit() else _LETTER_DIGIT if left.isalpha() else _DIGIT_LETTER
    return _SEPARATOR if left in _NAME_SEPARATORS or right in _NAME_SEPARATORS else _SYMBOL
