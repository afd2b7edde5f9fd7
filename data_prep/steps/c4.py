"""The filters of C4: Raffel et al. 2020 (JMLR 21:140, arXiv 1910.10683), section 2.2, and what its published code does besides.

Not done here: the list of bad words, which removes medicine and minorities along with what it is meant for (Dodge et al. 2021, arXiv
2104.08758, section 5.3); spans of three sentences that occurred before (`deduplicate` looks at whole documents); language
(`clean.language`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.documents import Drop, Tally
from megatron_codemix.config import TextQuality

MIN_WORDS_PER_LINE = 3
MAX_WORD_LENGTH = 1000
"""Characters: tensorflow_datasets.text.c4, `_MAX_WORD_LENGTH`."""

_END_MARKS = (".", "?", "!", '"', "”", "'", "’")
"""A period, exclamation mark, question mark, or end quotation mark."""
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LINE_PHRASES = ("javascript", *_POLICIES)
_CITATIONS = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_LENGTH + 1}}}")
# The end of a sentence: a mark, maybe quotation marks or brackets that close, and white space or the end of the text.
_SENTENCE = re.compile(r"[.!?][.!?\"'”’)\]]*(?=\s|$)")


def cleaned(text: str, settings: TextQuality, step: str, tally: Tally) -> str | Drop:
    """The text without the lines that C4 removes, or why the page is left out.

    Changes counted under `step`: 'c4: lines removed', 'c4: citation marks removed'.
    """
    folded = text.lower()
    if "lorem ipsum" in folded:
        return Drop("c4: lorem ipsum")
    if "{" in text:
        return Drop("c4: curly bracket")
    if not settings.c4_keep_lines:
        kept = list(_kept_lines(text, folded))
        removed = text.count("\n") + 1 - len(kept)
        joined = "\n".join(kept)
        text, marks = _CITATIONS.subn("", joined) if "[" in joined else (joined, 0)
        for what, number in (("c4: lines removed", removed), ("c4: citation marks removed", marks)):
            if number:
                tally.changed[step, what] += number
    sentences = 0
    for sentences, _ in enumerate(_SENTENCE.finditer(text), 1):
        if sentences >= settings.c4_min_sentences:
            return text
    return Drop("c4: too few sentences", str(sentences))


def _kept_lines(text: str, folded: str) -> Iterator[str]:
    # lower() can change the number of characters, never that of lines
    phrases = [phrase for phrase in _LINE_PHRASES if phrase in folded]
    folded_lines = folded.split("\n") if phrases else []
    for number, line in enumerate(text.split("\n")):
        line = line.strip()
        if not line.endswith(_END_MARKS) or line.endswith("...") or len(line.split(None, MIN_WORDS_PER_LINE - 1)) < MIN_WORDS_PER_LINE:
            continue
        if len(line) > MAX_WORD_LENGTH and _LONG_WORD.search(line):
            continue
        if not (phrases and any(phrase in folded_lines[number] for phrase in phrases)):
            yield line
