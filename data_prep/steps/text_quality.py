"""Filters for natural language."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from data_prep.documents import Document, Drop, Tally
from data_prep.languages import document_language, language_class
from data_prep.steps import c4, gopher
from megatron_codemix.config import SourceSpec, TextQuality


class TextQualityFilter:
    """Applies the rules named in the settings, in their order; the c4 rules change the text that later ones see."""

    name = "text_quality"

    def __init__(self, settings: TextQuality, spec: SourceSpec) -> None:
        self.settings = settings

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """See `data_prep.documents.Step`. Changes counted, of documents that stay: those of `data_prep.steps.c4`."""
        text = document.text
        changed: Counter[str] = Counter()
        for rule in self.settings.rules:
            drop: Drop | None = None
            if rule == "gopher":
                drop = gopher.quality(text, self.settings, _may_be_english(document))
            elif rule == "gopher_repetition":
                drop = gopher.repetition(text)
            else:
                result = c4.cleaned(text, self.settings, changed)
                drop, text = (result, text) if isinstance(result, Drop) else (None, result)
            if drop is not None:
                return drop
        for what, number in changed.items():
            if number:
                tally.changed[self.name, what] += number
        return document if text is document.text or text == document.text else replace(document, text=text)


def _may_be_english(document: Document) -> bool:
    """The rule on stop words is for English: it holds where the document is not known to be in another natural language."""
    language = document_language(document)
    return language in (None, "en") or language_class(language) != "prose" or language == "text"
