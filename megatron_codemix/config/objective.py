"""What a stage trains for: next-token prediction, and what may be changed of its windows first (docs/objectives.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from megatron_codemix.config.section import AS_SECTION, AS_VALUE, Section, Share, exact_share, form_of

FIM_SYMBOLS = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
"""Reserved symbols of fill-in-the-middle."""
MASK_SYMBOL = "<mask>"

Rate = Annotated[Annotated[Share, Tag(AS_VALUE)] | Annotated[dict[str, Share], Tag(AS_SECTION)], Discriminator(form_of)]
"""One share for all sources, or source → share; sources that are not named have 0."""
KindName = Literal["text", "code", "comment", "docstring", "signature", "body"]
"""Segment kinds of docs/formats.md."""


class FimConfig(Section):
    """Fill-in-the-middle (Bavarian et al. 2022, arXiv 2207.14255): documents are cut in three, the middle goes last."""

    rate: Rate
    """Share of the documents (as far as they lie in a window) that are rearranged: of all sources, or source → share (others: 0)."""
    spm: Share = 0.5
    """Of these, the share that is written suffix-prefix-middle; the others are prefix-suffix-middle."""


class PrefixConfig(Section):
    """Prefix-LM: the beginning of a document is seen by all of it, in both directions; it is no target."""

    rate: Rate
    """Share of the documents (as far as they lie in a window) that get a prefix: of all sources, or source → share (others: 0)."""
    until: str | None = None
    """A symbol, such as `<python>`: the prefix ends with the first one, and without one there is none; null: at a random token."""


class CorruptionConfig(Section):
    """Some input tokens are replaced, by `<mask>` or a random token; labels stay."""

    rate: Rate
    """Share of the tokens of `kinds` that are replaced: of all sources, or source → share (others: 0). Below 1."""
    mean_span: float = Field(default=1.0, ge=1.0, le=1e4)
    """Mean length of a replaced span in tokens, geometrically distributed; 1: tokens are drawn one by one. At most 10,000."""
    mask_share: Share = 0.8
    """Of the replaced tokens, the share that becomes `<mask>`; the others become random ordinary tokens."""
    kinds: Literal["all", "text", "code"] = "all"
    """Which input tokens: of natural language (text, comments, docstrings), of code (all others), or all. Never control symbols."""
    loss_on_corrupted: bool = False
    """Whether replaced tokens are targets, where their predecessor is to predict what stood there."""


class Objective(Section):
    """Next-token prediction, with any of these parts, applied in this order."""

    fim: FimConfig | None = None
    """Fill-in-the-middle; null: none."""
    prefix: PrefixConfig | None = None
    """Prefixes that are seen in both directions; null: none. Needs `document_masking`."""
    corruption: CorruptionConfig | None = None
    """Replaced input tokens; null: none."""
    loss_weights: dict[KindName, Annotated[float, Field(ge=0.0)]] = {}
    """Kind of a label's segment → weight of its loss; others have 1. A kind of weight 0 gives no targets at all."""

    @property
    def is_clm(self) -> bool:
        """Whether this is plain next-token prediction."""
        return self == Objective()

    @property
    def symbols(self) -> tuple[str, ...]:
        """Reserved symbols that the tokenizer must have."""
        until = (self.prefix.until,) if self.prefix and self.prefix.until else ()
        mask = (MASK_SYMBOL,) if self.corruption else ()
        return (*(FIM_SYMBOLS if self.fim else ()), *until, *mask)

    def words(self) -> str:
        """In a line: `clm`, or its parts."""
        parts = []
        if self.fim:
            parts.append(f"fim {_rate_words(self.fim.rate)} (spm {self.fim.spm})")
        if self.prefix:
            until = f" until {self.prefix.until}" if self.prefix.until else ""
            parts.append(f"prefix {_rate_words(self.prefix.rate)}{until}")
        if self.corruption:
            kinds = "" if self.corruption.kinds == "all" else f" of {self.corruption.kinds}"
            parts.append(f"corruption {_rate_words(self.corruption.rate)}{kinds}")
        if self.loss_weights:
            parts.append("loss weights " + ", ".join(f"{kind} {weight:g}" for kind, weight in self.loss_weights.items()))
        return "; ".join(["clm", *parts])


def _rate_words(rate: float | str | Mapping[str, float | str]) -> str:
    return ", ".join(f"{name} {share}" for name, share in rate.items()) if isinstance(rate, Mapping) else str(rate)


def rate_of(rate: float | str | Mapping[str, float | str], source: str) -> float:
    """The share that a `Rate` gives a source."""
    share = rate.get(source, 0) if isinstance(rate, Mapping) else rate
    return float(exact_share(share))


def _parse(value: Any) -> Any:
    if value == "clm":
        return Objective()
    if not isinstance(value, (dict, Objective)):
        raise ValueError("'clm', or a mapping of fim, prefix, corruption and loss_weights")
    return value


def _write(objective: Objective) -> Any:
    return "clm" if objective.is_clm else objective.model_dump(mode="json", exclude_none=True)


ObjectiveField = Annotated[Objective, BeforeValidator(_parse), PlainSerializer(_write)]
"""`clm`, or a mapping with the fields of `Objective`."""


def objective_problems(raw: Any, mixture: Any, document_masking: Any) -> list[str]:
    """Mistakes of a stage's objective, each beginning with its path inside the stage; tolerates any raw value."""
    if not isinstance(raw, dict):
        return []
    problems = []
    for part in ("fim", "prefix", "corruption"):
        section = raw.get(part)
        rate = section.get("rate") if isinstance(section, dict) else None
        rates = rate if isinstance(rate, dict) else {}
        known = mixture if isinstance(mixture, dict) else None
        problems += [
            f"objective.{part}.rate.{name}: the stage's mixture has no such source; use one of: {', '.join(map(str, known))}"
            for name in rates
            if known is not None and name not in known
        ]
        if part == "corruption" and any(_is_one(share) for share in (*rates.values(), rate)):
            problems.append("objective.corruption.rate: at 1 no input is left to predict from; give a share below 1")
    if isinstance(raw.get("prefix"), dict) and document_masking is False:
        problems.append("objective.prefix: without document_masking a prefix would be seen by other documents; set document_masking: true")
    weights = raw.get("loss_weights")
    if isinstance(weights, dict) and len(weights) == 6 and not any(weights.values()):
        problems.append("objective.loss_weights: every kind has weight 0, so nothing would be learnt; give one of them a weight")
    return problems


def _is_one(share: Any) -> bool:
    try:
        return not isinstance(share, (dict, bool)) and exact_share(share) == 1
    except (ValueError, ZeroDivisionError, TypeError):
        return False
