"""Which licences stay: an allow-list of SPDX identifiers."""

from __future__ import annotations

from dataclasses import replace

from data_prep.documents import Document, Drop, Tally
from data_prep.spdx import PERMISSIVE, covered, normalised
from megatron_codemix.config import LicenseStep, SourceSpec
from megatron_codemix.errors import UserError


class LicenseFilter:
    """Leaves out documents by licence, and writes the licence of those that stay as an SPDX expression."""

    name = "license"

    def __init__(self, settings: LicenseStep, spec: SourceSpec) -> None:
        self.keep_unknown = settings.unknown == "keep"
        self.allow = _allowed(settings.allow)

    def apply(self, document: Document, tally: Tally) -> Document | Drop:
        """See `data_prep.documents.Step`."""
        expression = normalised(document.license) if document.license else None
        if expression is None:
            if self.keep_unknown:
                return document
            said = (document.license or "").strip()
            return Drop("licence not recognised", said[:200]) if said else Drop("no licence")
        if self.allow and not covered(expression, self.allow):
            return Drop("licence not wanted", expression)
        return document if expression == document.license else replace(document, license=expression)


def _allowed(names: list[str]) -> frozenset[str]:
    """Normalised identifiers of an allow-list. Raises UserError for one that is none."""
    allow: set[str] = set()
    for name in names:
        if name.strip().lower() == "permissive":
            allow |= PERMISSIVE
            continue
        expression = normalised(name)
        if expression is None or " OR " in expression or " AND " in expression:
            raise UserError(f"clean.license.allow: '{name}' is no SPDX identifier (https://spdx.org/licenses); write one, or 'permissive'")
        allow.add(expression)
    return frozenset(allow)
