"""The words of a text as 64-bit hashes, vectorised: what near duplicates, decontamination and filters compare.

A word is a run of letters, digits and combining marks, lower-cased; of scripts written without spaces every character is a
word. Everything else separates, so texts that differ in layout, punctuation or case have the same words.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

BLOCK_CHARACTERS = 1 << 19
"""Characters looked at in one go by `word_blocks`: what numpy needs for them stays below some 20 MB."""
PAD = b"\0" * 8
"""What `byte_hashes` wants behind the last word."""

_LETTER, _ALONE = 1, 2
_MOST_BLOCKS = 12
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial that `windows` takes of a run: odd, so that it has an inverse modulo 2⁶⁴."""
_ASCII = bytes((code + 32 if 65 <= code <= 90 else code) if code < 128 and chr(code).isalnum() else 0 for code in range(256))
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_TABLE_SIZE = 0x20000
_NO_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # ideographs; those from 0x20000 on are beyond the table
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)


class Words(NamedTuple):
    """The words of a text in order."""

    hashes: np.ndarray
    """(n,) uint64: equal for equal words, on every machine."""
    starts: np.ndarray
    """(n,) int64: offset of the first character (code point) in the text."""
    ends: np.ndarray
    """(n,) int64: offset behind the last one."""


def words(text: str) -> Words:
    """All words of a text, not to be written to. Memory: some 40 bytes a character at worst; `word_blocks` bounds it.

    Several steps ask for the words of the same document one after another: those of the last text are kept.
    """
    return _last_words(text) if len(text) <= BLOCK_CHARACTERS else _words(text)


@lru_cache(maxsize=1)
def _last_words(text: str) -> Words:
    return _words(text)


def _words(text: str) -> Words:
    if text.isascii():
        encoded = b"".join((b"\0", text.encode("ascii").translate(_ASCII), PAD))
        inside = np.frombuffer(encoded, np.uint8) != 0
        edges = (inside[1:] != inside[:-1]).nonzero()[0]
        starts, ends = edges[0::2], edges[1::2]
        return Words(byte_hashes(encoded, starts + 1, ends + 1), starts, ends)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes, lower = _tables()
    within = np.minimum(codes, _TABLE_SIZE)
    kinds = classes[within]
    codes = np.where(codes < _TABLE_SIZE, lower[within], codes)
    padded = np.zeros(len(kinds) + 2, np.uint8)
    padded[1:-1] = kinds
    alone, letter = kinds == _ALONE, padded == _LETTER
    starts = np.flatnonzero(alone | (letter[1:-1] & ~letter[:-2]))
    ends = np.flatnonzero(alone | (letter[1:-1] & ~letter[2:])) + 1
    offsets = np.zeros(len(codes) + 1, np.int64)
    np.cumsum(1 + (codes >= 0x80).view(np.uint8) + (codes >= 0x800).view(np.uint8) + (codes >= 0x10000).view(np.uint8), out=offsets[1:])
    encoded = codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass") + PAD
    return Words(byte_hashes(encoded, offsets[starts], offsets[ends]), starts, ends)


def word_blocks(text: str, overlap: int = 0, characters: int = BLOCK_CHARACTERS) -> Iterator[Words]:
    """The words of a text in blocks, in bounded memory; each block begins with the last `overlap` words of the one before.

    Together they are `words(text)`: a block ends where a word does (but a run of more than `characters` letters is cut).
    Offsets are those in the whole text. Yields nothing where there is no word.
    """
    if len(text) <= characters:
        found = words(text)
        if len(found.hashes):
            yield found
        return
    kept: Words | None = None
    start = 0
    while start < len(text):
        end = min(start + characters, len(text))
        if end < len(text):
            end = _separator_before(text, start, end)
        hashes, starts, ends = words(text[start:end])
        block = Words(hashes, starts + start, ends + start)
        if kept is not None:
            block = Words(*(np.concatenate(pair) for pair in zip(kept, block)))
        if len(hashes):
            yield block
        if overlap:
            kept = Words(*(column[-overlap:] for column in block))
        start = end


def windows(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hashes (n - size + 1,) uint64 of all runs of `size` consecutive words of (n,) uint64; empty where there are fewer words.

    A polynomial in an odd number modulo 2⁶⁴, mixed: the order of the words counts.
    """
    if len(hashes) < size:
        return np.empty(0, np.uint64)
    # A run of a + b words is one of a and one of b behind it: by the binary digits of `size` few passes are needed.
    total, done = np.zeros(len(hashes) + 1, np.uint64), 0
    power, width, factor = hashes, 1, FACTOR
    while True:
        if size & width:
            total = total[: len(hashes) - done - width + 1] * factor + power[done:]
            done += width
        if done == size:
            return mixed(total)
        power = power[:-width] * factor + power[width:]
        width, factor = 2 * width, np.uint64(int(factor) ** 2 % 2**64)


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3 (64 bits) on (n,) uint64: a permutation in which every bit of the input counts."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


def _separator_before(text: str, start: int, end: int) -> int:
    """The last place up to `end` at which no word is cut, or `end` where a single run of letters reaches from `start`."""
    for first in (max(end - 256, start), start):
        found = words(text[first : end + 1])
        if not len(found.starts) or found.ends[-1] + first <= end or found.starts[-1] + first >= end:
            return end
        if found.starts[-1]:
            return int(found.starts[-1]) + first
    return end


def byte_hashes(encoded: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes (n,) uint64 of byte ranges, of which none holds a zero byte; `encoded` ends with `PAD`."""
    if not len(starts):
        return np.empty(0, np.uint64)
    eights = np.ndarray((len(encoded) - 7,), "<u8", encoded, strides=(1,))
    sizes = ends - starts
    # The first eight bytes of every word at once, then the next eight of those that have them, and so on.
    values = mixed((eights[starts] & _MASKS[np.minimum(sizes, 8)]) + FACTOR)
    longer = (sizes > 8).nonzero()[0]
    for block in range(1, _MOST_BLOCKS):
        if not len(longer):
            return values
        left = sizes[longer] - 8 * block
        more = eights[starts[longer] + 8 * block] & _MASKS[np.minimum(left, 8)]
        values[longer] = mixed(values[longer] * FACTOR ^ more)
        longer = longer[left > 8]
    for index in longer.tolist():
        digest = hashlib.blake2b(encoded[starts[index] : ends[index]], digest_size=8).digest()
        values[index] = int.from_bytes(digest, "little")
    return values


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point below `_TABLE_SIZE` (and one more for all above): (uint8 kind, uint32 lower case)."""
    kinds = np.zeros(_TABLE_SIZE + 1, np.uint8)
    lower = np.arange(_TABLE_SIZE + 1, dtype=np.uint32)
    for code in range(_TABLE_SIZE):
        character = chr(code)
        if unicodedata.category(character)[0] in "LMN" and (code >= 128 or character.isalnum()):
            kinds[code] = _LETTER
            small = character.lower()
            lower[code] = ord(small) if len(small) == 1 else code
    for first, last in _NO_SPACES:
        kinds[first : last + 1][kinds[first : last + 1] == _LETTER] = _ALONE
    kinds[_TABLE_SIZE] = _ALONE
    return kinds, lower
