"""The words of code with every name made the same word: what is left of a program when it is renamed and laid out anew.

Language keywords, built-in names, numbers, brackets and operators stay; commas, semicolons, quotation marks and layout do not
count. No grammar is needed, so it works on any language, on fragments, and at numpy's speed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from data_prep.words import PAD, byte_hashes, words

_SPACE, _LETTER, _OPERATOR = 0, 1, 2
_OPERATORS = b"()[]{}:=<>+-*/%&|^~!."
_KINDS = bytes(
    _LETTER if code >= 128 or chr(code).isalnum() or code == 95 else _OPERATOR if code in _OPERATORS else _SPACE for code in range(256)
)
# Nobody can rename these. Written out, for what the running Python has is not the same in every version. Python: keywords,
# functions and types, methods of its types. Exceptions are not among them: the same program may raise another one.
_PYTHON = (
    "False None True and as assert async await break class continue def del elif else except finally for from global if import in is "
    "lambda nonlocal not or pass raise return try while with yield abs all any ascii bin bool bytearray bytes callable chr classmethod "
    "complex dict dir divmod enumerate eval exec filter float format frozenset getattr hasattr hash hex id input int isinstance "
    "issubclass iter len list map max min next object oct open ord pow print property range repr reversed round set setattr slice "
    "sorted staticmethod str sum super tuple type vars zip append extend pop sort items keys values join split strip lower upper "
    "replace count index find insert remove get update add"
)
# Keywords, basic types and the commonest functions of C, C++, Go, Java, JavaScript, Rust and TypeScript that Python does not have.
_OTHERS = (
    "abstract auto boolean byte case catch char chan const constexpr default defer delete do double enum extends extern false final fn "
    "func function go goto impl implements inline instanceof interface let long loop match mod mut namespace new nil null nullptr "
    "operator package private protected pub public register self short signed sizeof static string struct switch template this throw "
    "throws trait true typedef typename typeof undefined union unsigned use using var vector virtual void volatile where i8 i16 i32 "
    "i64 u8 u16 u32 u64 usize isize f32 f64 Vec Some Ok Err String std push length"
)
KEPT_NAMES = (*_PYTHON.split(), *_OTHERS.split())
"""Names that stay as they are."""
# A hash's place in the table of kept names: these sixteen of its bits differ among all of them.
_SLOT_SHIFT, _SLOT_MASK = np.uint64(40), np.uint64(0xFFFF)


class CodeWords(NamedTuple):
    """The words of a text taken as code, in order."""

    hashes: np.ndarray
    """(n,) uint64; `NAME` for every name that its author chose."""
    places: np.ndarray
    """(n,) int64: offset of each word's first byte in the text's UTF-8."""


def code_words(text: str) -> CodeWords:
    """The words of a text taken as code. Memory: some 30 bytes a character at worst."""
    encoded = text.encode("utf-8", "surrogatepass")
    kinds = np.frombuffer(b"".join((b"\0", encoded.translate(_KINDS), b"\0")), np.uint8)
    letter = kinds == _LETTER
    begins = letter[1:-1] & ~letter[:-2]
    operator = kinds[1:-1] == _OPERATOR
    places = (begins | operator).nonzero()[0]
    codes = np.frombuffer(encoded, np.uint8)[places]
    hashes = operators()[codes]
    is_word = begins[places]
    starts = places[is_word]
    ends = (letter[1:-1] & ~letter[2:]).nonzero()[0] + 1
    found = byte_hashes(encoded + PAD, starts, ends)
    table = _kept_table()
    digit = (codes[is_word] >= 48) & (codes[is_word] <= 57)
    found[~digit & (table[_slots(found)] != found)] = NAME
    hashes[is_word] = found
    return CodeWords(hashes, places)


def is_kept_word(hashes: np.ndarray) -> np.ndarray:
    """Which of `code_words` are keywords, built-in names or numbers: (n,) bool."""
    return (hashes != NAME) & ~np.isin(hashes, operators())


def without_brackets(hashes: np.ndarray) -> np.ndarray:
    """The `code_words` but for round brackets, of which a formatter adds and takes away some."""
    return hashes[is_no_bracket(hashes)]


def is_no_bracket(hashes: np.ndarray) -> np.ndarray:
    """Which of `code_words` are no round brackets: (n,) bool."""
    opening, closing = operators()[[40, 41]]
    return (hashes != opening) & (hashes != closing)


@cache
def _kept_table() -> np.ndarray:
    """Hashes of the names that stay, each in its slot; (65536,) uint64, elsewhere 0."""
    names = [name.encode() for name in KEPT_NAMES]
    encoded = b" ".join(names) + PAD
    ends = np.cumsum([len(name) + 1 for name in names]) - 1
    hashes = byte_hashes(encoded, ends - [len(name) for name in names], ends)
    table = np.zeros(int(_SLOT_MASK) + 1, np.uint64)
    table[_slots(hashes)] = hashes
    assert np.count_nonzero(table) == len(names), "two names share a slot: choose another shift"
    return table


def _slots(hashes: np.ndarray) -> np.ndarray:
    return ((hashes >> _SLOT_SHIFT) & _SLOT_MASK).astype(np.intp)


@cache
def operators() -> np.ndarray:
    """(256,) uint64, by byte: hash of an operator. 256 values that no word of letters has but by chance."""
    return words(" ".join(f"operator{code}operator" for code in range(256))).hashes


NAME = words("a name that its author chose").hashes[1]
"""What every such name becomes."""
