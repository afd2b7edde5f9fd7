"""Filters for code: Li et al. 2023 (StarCoder), arXiv 2305.06161, section 3.2, and Chen et al. 2021 (Codex), arXiv 2107.03374,
section 3.1."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import document_language
from data_prep.syntax import find_spans, grammar_of, parse
from megatron_codemix.config import CodeQuality, SourceSpec

MIN_VISIBLE_CHARACTERS = 100
MIN_DATA_CHARACTERS, MAX_DATA_CHARACTERS = 50, 5000
MIN_DATA_ALPHABETIC = 0.5

_XML_PLACE = 100
_LONG_LINES = frozenset({"html", "json", "markdown", "tex", "text", "xml"})
"""Languages whose paragraphs may be one line: the rules on lines do not hold for them (Lozhkov et al. 2024, arXiv 2402.19173)."""
_XML = frozenset({"html", "svg", "xml"})
_FIRST_LINES, _FIRST_CHARACTERS = 10, 2000
_GENERATED = re.compile(
    r"""<auto-?generated | ^[^\w\n]*auto[-\ ]?generated\b(?:[^\w\n]*$ | \ (?:file|code)\b) | @generated\b
    | auto(?:matically\ |[-\ ]?)generated\ (?:by|from|with|using)\b
    | \b(?:file|code|source|module|class|header)\ (?:is|was|has\ been)
        \ (?:(?:automatically\ |auto[-\ ]?)?generated | generated\ automatically)
    | ^[^\w\n]*code\ generated\ by\b | ^(?![ \t]{2})[^\w\n]*generated\ (?:by|from|with|automatically)\b
    | do\ not\ edit\b(?:[\s.!*/#-]*$ | \ (?:manually|by\ hand|directly)\b
        | \ this\ file\b(?:[^\w\n]*$ | [^\w\s] | \ (?:as|because|by|directly|manually|or|since|unless|yourself)\b))""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_MINIFIED = re.compile(r"[.-]min\.(?:js|mjs|cjs|css)$", re.IGNORECASE)
_TAG = re.compile(r"<(?:(!--)|(script|style)\b|[a-z/!?])", re.IGNORECASE)
_LETTERS = bytes(code for code in range(128) if chr(code).isalpha())
_BLOCK = 1 << 20
_TABLE_SIZE = 0x20000


class CodeQualityFilter:
    """Leaves out code by its size, lines, characters, and what its first lines say of it."""

    name = "code_quality"

    def __init__(self, settings: CodeQuality, spec: SourceSpec) -> None:
        self.settings = settings

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """See `data_prep.documents.Step`."""
        language = document_language(document)
        return (
            self._by_size_and_head(document, language)
            or self._by_lines(document.text, language)
            or self._by_characters(document.text, language)
            or self._by_comments(document, language)
            or document
        )

    def _by_size_and_head(self, document: Document, language: str | None) -> Drop | None:
        text, settings = document.text, self.settings
        if not text.strip():
            return Drop("empty")
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if size > settings.max_bytes:
            return Drop("file too large", f"{size} bytes")
        if settings.xml and language not in _XML and "<?xml version=" in text[:_XML_PLACE]:
            return Drop("XML under another name", language or "")
        if settings.generated:
            said = _says_it_is_generated(text)
            if said:
                return Drop("generated", said)
            if document.path and _MINIFIED.search(document.path):
                return Drop("minified")
        return None

    def _by_lines(self, text: str, language: str | None) -> Drop | None:
        if language in _LONG_LINES:
            return None
        longest, mean = line_lengths(text)
        if longest > self.settings.max_line_length:
            return Drop("longest line too long", f"{longest} characters")
        if mean > self.settings.max_mean_line_length:
            return Drop("mean line too long", f"{mean:.1f} characters")
        return None

    def _by_characters(self, text: str, language: str | None) -> Drop | None:
        alphabetic = alphabetic_share(text)
        if alphabetic < self.settings.min_alphabetic:
            return Drop("too few alphabetic characters", f"{alphabetic:.3f} of them")
        if language == "html" and self.settings.html_min_visible > 0:
            visible = len(" ".join(visible_text(text).split()))
            if visible < MIN_VISIBLE_CHARACTERS or visible < self.settings.html_min_visible * len(text):
                return Drop("too little visible text", f"{visible} of {len(text)} characters")
        if language in ("json", "yaml") and self.settings.data_files:
            if not MIN_DATA_CHARACTERS <= len(text) <= MAX_DATA_CHARACTERS:
                return Drop("data file too short or too long", f"{len(text)} characters")
            if alphabetic < MIN_DATA_ALPHABETIC:
                return Drop("data file with too few alphabetic characters", f"{alphabetic:.3f} of them")
        return None

    def _by_comments(self, document: Document, language: str | None) -> Drop | None:
        least, most = self.settings.min_comments, self.settings.max_comments
        if least <= 0 and most >= 1:
            return None
        share = comment_share(document.text, language, document.path)
        if share is None:
            return None
        if share < least:
            return Drop("too few comments", f"{share:.3f} of the bytes")
        return Drop("too many comments", f"{share:.3f} of the bytes") if share > most else None


def comment_share(text: str, language: str | None, path: str | None) -> float | None:
    """Share of the bytes that comments and docstrings take; None for what is in no language with a grammar, or cannot be parsed."""
    grammar = grammar_of(language, path)
    tree = parse(text.encode("utf-8", "surrogatepass"), grammar) if grammar else None
    if tree is None:
        return None
    spans = find_spans(tree)
    return sum(end - start for start, end in (*spans.comments, *spans.docstrings)) / max(len(tree.source), 1)


def line_lengths(text: str) -> tuple[int, float]:
    """(characters of the longest line, characters of the mean one), without line ends; what follows the last line end is a line if
    it is not empty."""
    if text.isascii():
        codes, end = np.frombuffer(text.encode("ascii"), np.uint8), len(text)
        breaks = np.flatnonzero(codes == ord("\n"))
        edges = np.concatenate(([-1], breaks, [end] if not text.endswith("\n") else []))
        lengths = np.diff(edges) - 1
        return (int(lengths.max()), float(lengths.mean())) if len(lengths) else (0, 0.0)
    lines = text.removesuffix("\n").split("\n")
    return max(map(len, lines)), (len(text.removesuffix("\n")) - len(lines) + 1) / len(lines)


def alphabetic_share(text: str) -> float:
    """Share of letters (of any script) among all characters; 0 for an empty text."""
    if not text:
        return 0.0
    if text.isascii():
        return 1 - len(text.encode("ascii").translate(None, _LETTERS)) / len(text)
    letters = 0
    for start in range(0, len(text), _BLOCK):
        codes = np.frombuffer(text[start : start + _BLOCK].encode("utf-32-le", "surrogatepass"), np.uint32)
        letters += np.count_nonzero(_letters()[np.minimum(codes, _TABLE_SIZE)])
    return letters / len(text)


@cache
def _letters() -> np.ndarray:
    """(_TABLE_SIZE + 1,) bool by code point; those beyond are ideographs."""
    return np.array([chr(code).isalpha() for code in range(_TABLE_SIZE)] + [True])


def _says_it_is_generated(text: str) -> str:
    """The line among the first ones that says so, or ''."""
    head = "\n".join(text[:_FIRST_CHARACTERS].split("\n", _FIRST_LINES)[:_FIRST_LINES])
    folded = head.lower()
    if "generated" not in folded and "do not edit" not in folded:
        return ""
    found = _GENERATED.search(head)
    if not found:
        return ""
    start = head.rfind("\n", 0, found.end() - 1) + 1
    return head[start:].split("\n", 1)[0].strip()[:200]


def visible_text(html: str) -> str:
    """HTML without tags, comments, scripts and styles; of what is never closed nothing is visible, as in a browser."""
    folded, parts, place = html.lower(), [], 0
    if len(folded) != len(html):  # a few characters grow when lowered; then only ASCII may be
        folded = html.translate({code: code + 32 for code in range(65, 91)})
    while match := _TAG.search(html, place):
        parts.append(html[place : match.start()])
        comment, element = match.groups()
        end = "-->" if comment else ">"
        place = match.end()
        if element:
            place = folded.find(f"</{element.lower()}", place)
            if place < 0:
                return " ".join(parts)
        place = html.find(end, place)
        if place < 0:
            return " ".join(parts)
        place += len(end)
    parts.append(html[place:])
    return " ".join(parts)
