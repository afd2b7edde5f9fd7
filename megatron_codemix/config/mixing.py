"""Competitive and additive mixing: ways of writing a stage's tokens and mixture (Petty et al. 2024, arXiv 2409.04556, section 3.1).

m is the code share of the tokens, N the tokens of the stage:

    competitive   N is fixed;       N_code = m · N,               N_lang = (1 − m) · N
    additive      N_lang is fixed;  N_code = m · N_lang / (1 − m),  N = N_lang / (1 − m)

In the competitive setting code takes the place of language; in the additive one it comes on top, so that runs also differ in their
length. The controls of an additive run hold that apart:

    language_only    N_lang of language and nothing else: what the code was added to
    volume_matched   N of language: as long as the run with code, but fresh language in the code's place
    placebo          as the run, but what `placebo` names in the code's place (scrambled code, say): as long, as many sources, no code

All arithmetic is on fractions; tokens are rounded to the nearest whole number, and the plan rounds them to whole global batches.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, ValidationError

from megatron_codemix.config.section import Count, Section, Share, exact_share

Control = Literal["language_only", "volume_matched", "placebo"]


class Mixing(Section):
    """A code share, and what stays fixed as it grows. Gives the stage its `tokens` and `mixture`."""

    mode: Literal["competitive", "additive"]
    """competitive: the stage's tokens stay, code replaces language; additive: the language stays, code is added to it."""
    code_share: Share
    """Code's share m of the stage's tokens; below 1 in additive mode."""
    tokens: Count | None = None
    """competitive: tokens of the stage, N."""
    language_tokens: Count | None = None
    """additive: tokens of language, N_lang; the stage has N_lang / (1 − m)."""
    code: dict[str, Share] = Field(min_length=1)
    """Source → its part of the code; parts sum to 1."""
    language: dict[str, Share] = Field(min_length=1)
    """Source → its part of the language; parts sum to 1."""
    control: Control | None = None
    """Train a control in this run's place: language_only and volume_matched (additive), placebo (both). Null: the run itself."""
    placebo: dict[str, Share] | None = None
    """control placebo: source → its part of what takes the code's place; parts sum to 1."""


def expand_stage(stage: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """A raw stage with `tokens` and `mixture` as its `mixing` gives them, and every mistake of `mixing`, each beginning with `where`.

    Where there are mistakes the stage gets stand-ins, so that its others are found as well; nothing is to be made of it then.
    """
    raw = stage.get("mixing")
    if raw is None:
        return stage, []
    stand_in = {"tokens": stage.get("tokens", 1), "mixture": stage.get("mixture") or _stand_in(raw)}
    try:
        mixing = Mixing.model_validate(raw)
    except ValidationError:  # told by the fields themselves
        return {**stage, **stand_in}, []
    problems = [f"{where}.mixing.{problem}" for problem in _problems(mixing)]
    if problems:
        return {**stage, **stand_in}, problems
    made = {"tokens": mixing_tokens(mixing), "mixture": _mixture(mixing)}
    for key, value in made.items():
        # a resolved config has both: it was written from what this gave
        if key in stage and not _same(stage[key], value):
            problems.append(f"{where}.{key}: 'mixing' gives it ({_words(value)}), and the stage says another; leave it out")
    return {**stage, **made}, problems


def mixing_tokens(mixing: Mixing) -> int:
    """Target tokens of the stage, before they are rounded to whole global batches."""
    if mixing.mode == "competitive":
        assert mixing.tokens is not None
        return mixing.tokens
    assert mixing.language_tokens is not None
    if mixing.control == "language_only":
        return mixing.language_tokens
    return additive_tokens(mixing.language_tokens, exact_share(mixing.code_share))


def additive_tokens(language_tokens: int, code_share: Fraction) -> int:
    """N_lang / (1 − m), to the nearest whole token (ties up)."""
    total = Fraction(language_tokens) / (1 - code_share)
    return (2 * total.numerator + total.denominator) // (2 * total.denominator)


def _mixture(mixing: Mixing) -> dict[str, str]:
    share = exact_share(mixing.code_share)
    if mixing.control in ("language_only", "volume_matched"):
        share = Fraction(0)
    added = (mixing.placebo or {}) if mixing.control == "placebo" else mixing.code
    parts = {name: share * exact_share(part) for name, part in added.items()}
    for name, part in mixing.language.items():
        parts[name] = parts.get(name, Fraction(0)) + (1 - share) * exact_share(part)
    return {name: str(part) for name, part in parts.items() if part}


def _problems(mixing: Mixing) -> list[str]:
    problems = []
    for name, other, mode in (("tokens", "language_tokens", "competitive"), ("language_tokens", "tokens", "additive")):
        if mixing.mode == mode:
            if getattr(mixing, name) is None:
                problems.append(f"{name}: '{mode}' needs it; give the tokens of the {'stage' if name == 'tokens' else 'language'}")
            if getattr(mixing, other) is not None:
                problems.append(f"{other}: '{mode}' fixes {name} instead; leave it out")
    if mixing.mode == "additive" and exact_share(mixing.code_share) == 1:
        problems.append("code_share: at 1 no language is left to add code to; give a share below 1, or use 'competitive'")
    if mixing.mode == "competitive" and mixing.control in ("language_only", "volume_matched"):
        problems.append(f"control: '{mixing.control}' is the competitive run at code_share 0; set that, and leave the control out")
    if mixing.control == "placebo" and not mixing.placebo:
        problems.append("placebo: the control needs the sources that take the code's place")
    if mixing.placebo and mixing.control != "placebo":
        problems.append("placebo: only control 'placebo' reads it; leave it out, or set the control")
    for field in ("code", "language", "placebo"):
        parts = getattr(mixing, field)
        if parts and (total := sum(map(exact_share, parts.values()))) != 1:
            problems.append(f"{field}: parts sum to {float(total):g}, not 1; write thirds as '1/3'")
    added = mixing.placebo if mixing.control == "placebo" else mixing.code
    both = sorted(set(added or {}) & set(mixing.language))
    if both:
        problems.append(f"language.{both[0]}: is among what takes the code's share as well; a source belongs to one of them")
    return problems


def _stand_in(raw: Any) -> Any:
    names = [name for key in ("language", "code") if isinstance(raw, dict) and isinstance(raw.get(key), dict) for name in raw[key]]
    return {names[0]: 1} if names else None


def _same(given: Any, made: Any) -> bool:
    if not isinstance(made, dict):
        return given == made
    try:
        return isinstance(given, dict) and {k: exact_share(v) for k, v in given.items()} == {k: exact_share(v) for k, v in made.items()}
    except (ValueError, TypeError, ZeroDivisionError):
        return False


def _words(value: Any) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else f"{value:,}"
