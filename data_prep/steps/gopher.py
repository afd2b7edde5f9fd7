"""The filters of Gopher's MassiveText: Rae et al. 2021, arXiv 2112.11446, section A.1.1 and table A1.

A word is a run of characters between white space for the quality rules, and a run of letters and digits for repeated n-grams, so
that punctuation hides no repetition. The rules are for languages that put spaces between words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np

from data_prep.documents import Drop
from data_prep.words import Words, words
from megatron_codemix.config import TextQuality

MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
MIN_STOP_WORDS = 2

MAX_DUPLICATE_LINES = 0.30
MAX_DUPLICATE_PARAGRAPHS = 0.30
MAX_DUPLICATE_LINE_CHARACTERS = 0.20
MAX_DUPLICATE_PARAGRAPH_CHARACTERS = 0.20
MAX_TOP_GRAM = {2: 0.20, 3: 0.18, 4: 0.16}
"""Words in an n-gram → largest share of the characters that the most frequent one may cover."""
MAX_DUPLICATE_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Words in an n-gram → largest share of the characters that n-grams which occurred before may cover. That the first occurrence does
not count, as with lines, is the reading of datatrove, with which the published corpora were filtered; the paper does not say."""

_STOP_WORDS = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.IGNORECASE)
_BULLETS = ("•", "‣", "⁃", "◦", "●", "*", "-")
_ELLIPSES = ("...", "…")
MOST_CHARACTERS = 1 << 20
"""Characters looked at in one go."""
MOST_LINE_CHARACTERS = 1 << 23
"""Of a longer text, the lines and paragraphs of its beginning stand for all: a bound on memory, for shares that no longer change."""

_SPACE, _OTHER, _ALPHA = 0, 1, 2
_TABLE_SIZE = 0x20000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def quality(text: str, settings: TextQuality, english: bool) -> Drop | None:
    """The rules on words and lines; None where the document stays. english: whether the rule on English stop words holds for it."""
    num_words, mean_length, alphabetic = _word_statistics(text)
    if num_words < settings.min_words:
        return Drop("gopher: too few words", f"{num_words} words")
    if num_words > settings.max_words:
        return Drop("gopher: too many words", f"{num_words} words")
    if not settings.min_mean_word_length <= mean_length <= settings.max_mean_word_length:
        return Drop("gopher: mean word length", f"{mean_length:.2f} characters")
    if text.count("#") > MAX_SYMBOLS_PER_WORD * num_words:
        return Drop("gopher: too many hash signs", f"{text.count('#')} in {num_words} words")
    ellipses = text.count("...") + text.count("…")
    if ellipses > MAX_SYMBOLS_PER_WORD * num_words:
        return Drop("gopher: too many ellipses", f"{ellipses} in {num_words} words")
    if alphabetic < MIN_ALPHABETIC_WORDS:
        return Drop("gopher: too few alphabetic words", f"{alphabetic:.3f} of the words")
    if english and not _has_stop_words(text):
        return Drop("gopher: too few stop words")
    return _line_rules(text, bool(ellipses))


def repetition(text: str) -> Drop | None:
    """The rules on repeated lines, paragraphs and n-grams; None where the document stays.

    N-grams are looked for in the first `MOST_CHARACTERS`: more than the words of the longest document that `quality` keeps.
    """
    beginning = text[:MOST_LINE_CHARACTERS]
    for what, parts, most, most_characters in (
        ("lines", _lines(beginning), MAX_DUPLICATE_LINES, MAX_DUPLICATE_LINE_CHARACTERS),
        ("paragraphs", _paragraphs(beginning), MAX_DUPLICATE_PARAGRAPHS, MAX_DUPLICATE_PARAGRAPH_CHARACTERS),
    ):
        share, character_share = _duplicates(parts, len(beginning))
        if share > most:
            return Drop(f"gopher: duplicate {what}", f"{share:.3f} of them")
        if character_share > most_characters:
            return Drop(f"gopher: characters in duplicate {what}", f"{character_share:.3f} of all")
    return _gram_rules(words(text[:MOST_CHARACTERS]), min(len(text), MOST_CHARACTERS))


def _word_statistics(text: str) -> tuple[int, float, float]:
    """(number of words, mean characters of one, share of those with a letter)."""
    num_words = characters = alphabetic = 0
    for block in _blocks(text):
        if block.isascii():
            classes = np.frombuffer(block.encode("ascii").translate(_ascii_classes()), np.uint8)
        else:
            codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), np.uint32)
            classes = _classes()[np.minimum(codes, _TABLE_SIZE)]
        outside = np.ones(len(classes) + 1, bool)
        np.equal(classes, _SPACE, out=outside[1:])
        starts = np.flatnonzero(outside[:-1] > outside[1:])
        if len(starts):
            num_words += len(starts)
            characters += len(classes) - np.count_nonzero(outside[1:])
            # a word has a letter if the largest class in it says so; white space behind it is of the smallest
            alphabetic += np.count_nonzero(np.maximum.reduceat(classes, starts) == _ALPHA)
    return num_words, characters / max(num_words, 1), alphabetic / max(num_words, 1)


def _blocks(text: str) -> Iterator[str]:
    """The text in pieces of at most a mebi-character that end behind a space, or a line, where there is one: bounds the memory."""
    start = 0
    while len(text) - start > MOST_CHARACTERS:
        end = start + MOST_CHARACTERS
        cut = 1 + max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        yield text[start : (cut or end)]
        start = cut or end
    yield text[start:]


@cache
def _classes() -> np.ndarray:
    """(_TABLE_SIZE + 1,) uint8: class by code point; the last one stands for all beyond, which are ideographs."""
    table = np.full(_TABLE_SIZE + 1, _ALPHA, np.uint8)
    for code in range(_TABLE_SIZE):
        character = chr(code)
        if not character.isalpha():
            table[code] = _SPACE if character.isspace() else _OTHER
    return table


@cache
def _ascii_classes() -> bytes:
    return bytes(_ALPHA if chr(code).isalpha() else _SPACE if chr(code).isspace() else _OTHER for code in range(128)) + bytes(128)


def _has_stop_words(text: str) -> bool:
    seen: set[str] = set()
    for match in _STOP_WORDS.finditer(text):
        seen.add(match[0].lower())
        if len(seen) >= MIN_STOP_WORDS:
            return True
    return False


def _lines(text: str) -> list[str]:
    """Lines that are not blank, without white space around them."""
    return list(filter(None, map(str.strip, text.split("\n"))))


def _paragraphs(text: str) -> list[str]:
    """What blank lines divide."""
    return list(filter(None, map(str.strip, text.split("\n\n"))))


def _line_rules(text: str, ellipses: bool) -> Drop | None:
    lines = _lines(text[:MOST_LINE_CHARACTERS])
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    if bullets > MAX_BULLET_LINES * len(lines):
        return Drop("gopher: too many bullet lines", f"{bullets} of {len(lines)}")
    if ellipses:
        ending = sum(line.endswith(_ELLIPSES) for line in lines)
        if ending > MAX_ELLIPSIS_LINES * len(lines):
            return Drop("gopher: too many lines end in an ellipsis", f"{ending} of {len(lines)}")
    return None


def _duplicates(parts: list[str], num_characters: int) -> tuple[float, float]:
    """(share of parts that another one before them equals, share of all characters in those)."""
    counts = Counter(parts)
    if len(counts) == len(parts):
        return 0.0, 0.0
    repeated = [(part, count - 1) for part, count in counts.items() if count > 1]
    return sum(count for _, count in repeated) / len(parts), sum(len(part) * count for part, count in repeated) / num_characters


def _gram_rules(found: Words, num_characters: int) -> Drop | None:
    """The rules on n-grams, from 2 to 10 words."""
    return _frequent_grams(found, num_characters) or _duplicate_grams(found, num_characters)


def _frequent_grams(found: Words, num_characters: int) -> Drop | None:
    """The rules on the most frequent n-gram.

    Hashes fall into about four times as many buckets as there are words. No n-gram is in the text more often than the fullest bucket
    of two-word runs has members, so almost all documents are judged without sorting anything.
    """
    values = found.hashes
    fullest = 0
    for size, most in MAX_TOP_GRAM.items():
        values = _longer(values, found, size)
        if not len(values):
            return None
        fullest = fullest or int(np.bincount(_buckets(values, len(values))).max())
        lengths = found.ends[size - 1 :] - found.starts[: len(values)]
        if fullest * int(lengths.max()) > most * num_characters:
            covered = _top_gram(values, lengths, most * num_characters)
            if covered:
                return Drop(f"gopher: most frequent {size}-gram", f"{covered / num_characters:.3f} of the characters")
    return None


def _duplicate_grams(found: Words, num_characters: int) -> Drop | None:
    """The rules on n-grams that occurred before: whoever is no duplicate with five words is none with more."""
    values = found.hashes
    for size in range(2, min(MAX_DUPLICATE_GRAMS)):
        values = _longer(values, found, size)
    places, least = np.arange(len(values)), min(MAX_DUPLICATE_GRAMS.values())
    for size, most in MAX_DUPLICATE_GRAMS.items():
        places = places[: np.searchsorted(places, len(found.hashes) - size, side="right")]
        values = values[: len(places)] * _FACTOR + found.hashes[places + (size - 1)]
        kept, again = _repeated(values)
        if not len(kept):
            return None
        again = places[again]
        values, places = values[kept], places[kept]
        covered = _covered(found.starts[again], found.ends[again + (size - 1)])
        if covered > most * num_characters:
            return Drop(f"gopher: duplicate {size}-grams", f"{covered / num_characters:.3f} of the characters")
        if covered <= least * num_characters:
            return None  # longer ones lie within shorter ones, so they cover no more
    return None


def _longer(values: np.ndarray, found: Words, size: int) -> np.ndarray:
    """Hashes of all runs of `size` words from those of one word less: a polynomial of words' hashes, which are mixed already, so its
    high bits are a good hash."""
    return values[: max(len(found.hashes) - size + 1, 0)] * _FACTOR + found.hashes[size - 1 :]


def _buckets(values: np.ndarray, num_words: int) -> np.ndarray:
    return (values >> np.uint64(64 - max(8, (4 * num_words).bit_length()))).astype(np.int64)


def _top_gram(values: np.ndarray, lengths: np.ndarray, most: float) -> int:
    """Characters that the n-gram which covers most of them covers, where that is more than `most`; else 0."""
    buckets = _buckets(values, len(values))
    full = np.bincount(buckets, lengths) > most
    if not full.any():
        return 0
    chosen = full[buckets]
    _, inverse = np.unique(values[chosen], return_inverse=True)
    covered = int(np.bincount(inverse, lengths[chosen]).max())
    return covered if covered > most else 0


def _repeated(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (ascending) of the values that occur more than once, and of those among them that occurred before."""
    buckets = _buckets(values, len(values))
    maybe = np.flatnonzero(np.bincount(buckets)[buckets] > 1)
    if not len(maybe):
        return maybe, maybe
    order = maybe[np.argsort(values[maybe], kind="stable")]
    same = values[order[1:]] == values[order[:-1]]
    again = np.concatenate(([False], same))
    kept = again.copy()
    kept[:-1] |= same
    return np.sort(order[kept]), np.sort(order[again])


def _covered(starts: np.ndarray, ends: np.ndarray) -> int:
    """Characters in the union of intervals, of which both ends ascend."""
    if not len(starts):
        return 0
    return int((ends - np.maximum(starts, np.concatenate((starts[:1], ends[:-1])))).sum())
