"""Notebooks, commits, issues and questions as Markdown: "code-adjacent" data (Aryabumi et al. 2024, arXiv 2408.10914, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_prep.documents import Document, Drop, Tally
from data_prep.rendering import Unrenderable, render_commit, render_issue, render_notebook, render_question
from megatron_codemix.config.prep import SourceSpec
from megatron_codemix.config.prep_steps import RenderStep


class Renderer:
    """The step `render`. A document that is not what `settings.form` says is dropped under a reason; what is left out inside of one
    (images, long outputs, long diffs, bots' comments) is counted in `tally.changed`.
    """

    name = "render"

    def __init__(self, settings: RenderStep, spec: SourceSpec) -> None:
        self._settings = settings
        self._text_field = spec.text_field

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """The document with its text rendered, or why it cannot be."""

        def count(what: str, number: int = 1) -> None:
            tally.changed[self.name, what] += number

        settings = self._settings
        try:
            if settings.form == "notebook":
                text = render_notebook(document.text, settings.outputs, settings.max_output_bytes, count)
            elif settings.form == "commit":
                text = render_commit(self._fields(document), settings.max_output_bytes, count)
            elif settings.form == "issue":
                text = render_issue(self._fields(document), count)
            else:
                text = render_question(self._fields(document), count)
        except Unrenderable as error:
            return Drop(error.reason, error.detail)
        return replace(document, text=text, fields={})

    def _fields(self, document: Document) -> Mapping[str, Any]:
        """The row: what the source took as the text stands under its own key again."""
        return {**document.fields, self._text_field: document.text}
