"""The filters of C4: Raffel et al. 2020 (JMLR 21:140, arXiv 1910.10683), section 2.2, and what its published code does besides.

Not done here: the list of bad words, which removes medicine and minorities along with what it is meant for (Dodge et al. 2021, arXiv
2104.08758, section 5.3); spans of three sentences that occurred before (`deduplicate` looks at whole documents); language
(`clean.language`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from data_prep.documents import Drop
from megatron_codemix.config import TextQuality

MIN_WORDS_PER_LINE = 3
MAX_WORD_LENGTH = 1000
"""Characters: tensorflow_datasets.text.c4, `_MAX_WORD_LENGTH`."""

_END_MARKS = (".", "?", "!", '"', "”", "'", "’")
"""A period, exclamation mark, question mark, or end quotation mark."""
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_PLACEHOLDER = "lorem ipsum"
_ALL_PHRASES = (_PLACEHOLDER, "javascript", *_POLICIES)
_BLOCK, _OVERLAP = 1 << 20, 32
_CITATIONS = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_LENGTH + 1}}}")
# The end of a sentence: a mark, maybe quotation marks or brackets that close, and white space or the end of the text.
_SENTENCE = re.compile(r"[.!?][.!?\"'”’)\]]*(?=\s|$)")


def cleaned(text: str, settings: TextQuality, changed: Counter[str]) -> str | Drop:
    """The text without the lines that C4 removes, or why the page is left out.

    changed: counts 'c4: lines removed', 'c4: citation marks removed'.
    """
    if "{" in text:
        return Drop("c4: curly bracket")
    phrases = _phrases(text)
    if _PLACEHOLDER in phrases:
        return Drop("c4: lorem ipsum")
    if not settings.c4_keep_lines:
        kept = list(_kept_lines(text, phrases))
        changed["c4: lines removed"] += text.count("\n") + 1 - len(kept)
        text = "\n".join(kept)
        if "[" in text:
            text, marks = _CITATIONS.subn("", text)
            changed["c4: citation marks removed"] += marks
    sentences = 0
    for sentences, _ in enumerate(_sentences(text, not settings.c4_keep_lines), 1):
        if sentences >= settings.c4_min_sentences:
            return text
    return Drop("c4: too few sentences", str(sentences))


def _sentences(text: str, each_line: bool) -> Iterator[None]:
    """One for each sentence. each_line: every line holds one or more, as those do that C4 keeps: one may end in a quotation mark
    alone. (tensorflow_datasets.text.c4 adds up the sentences of its lines, of which none has fewer than one.)"""
    if not each_line:
        yield from (None for _ in _SENTENCE.finditer(text))
        return
    for line in text.split("\n"):
        if line:
            yield from (None for _ in _SENTENCE.finditer(line)) if _SENTENCE.search(line) else (None,)


def _phrases(text: str) -> set[str]:
    """Which of the phrases are in the text, in any case; looked for in pieces, so that no second text is in memory."""
    found: set[str] = set()
    for start in range(0, len(text), _BLOCK):
        folded = text[start : start + _BLOCK + _OVERLAP].lower()
        found.update(phrase for phrase in _ALL_PHRASES if phrase in folded)
    return found


def _kept_lines(text: str, phrases: set[str]) -> Iterator[str]:
    for line in text.split("\n"):
        line = line.strip()
        if not line.endswith(_END_MARKS) or line.endswith("...") or len(line.split(None, MIN_WORDS_PER_LINE - 1)) < MIN_WORDS_PER_LINE:
            continue
        if len(line) > MAX_WORD_LENGTH and _LONG_WORD.search(line):
            continue
        if phrases:
            folded = line.lower()
            if any(phrase in folded for phrase in phrases):
                continue
        yield line
