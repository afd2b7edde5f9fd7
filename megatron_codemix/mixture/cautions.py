"""What a plan allows, but a reader should know of it: very much code, and sources read again and again."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from megatron_codemix.mixture.plan import Plan

MOST_CODE = Fraction(3, 4)
"""Share of code above which knowledge and reasoning fell in published runs (Aryabumi et al. 2024, arXiv 2408.10914, section 3.2)."""
MOST_EPOCHS = 4
"""Readings of a source up to which repeated tokens are worth nearly as much as fresh ones (Muennighoff et al. 2023, arXiv 2305.16264)."""


def code_share(plan: Plan, modalities: Mapping[str, str]) -> Fraction:
    """Code's share of the window tokens that the plan reads; modalities: source → "code" or "text", as its manifest says."""
    tokens: dict[str, int] = {"code": 0, "text": 0}
    for stage in plan.stages:
        for name, drawn in zip(plan.sources, stage.drawn.tolist(), strict=True):
            tokens[modalities[name]] += drawn * stage.sequence_length
    return Fraction(tokens["code"], sum(tokens.values()))


def cautions(plan: Plan, modalities: Mapping[str, str]) -> list[str]:
    """A line each; empty for a plan that gives no reason for one."""
    found = []
    share = code_share(plan, modalities)
    if share > MOST_CODE:
        found.append(
            f"{float(share):.1%} of the tokens are code: above {float(MOST_CODE):.0%} published runs lost knowledge and reasoning "
            "(arXiv 2408.10914)"
        )
    for name, epochs in plan.epochs().items():
        if epochs > MOST_EPOCHS:
            found.append(
                f"'{name}' is read {float(epochs):.3g} times: beyond {MOST_EPOCHS} readings repeated tokens are worth less and less "
                "(arXiv 2305.16264)"
            )
    return found


def repetition_cautions(arms: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where runs that are compared repeat a source to different degrees: there a difference may be the repetition's.

    arms: run → source → epochs. Readings up to the first whole one repeat nothing; those that differ by less than a hundredth are equal.
    """
    found = []
    for source in dict.fromkeys(source for epochs in arms.values() for source in epochs):
        repeated = {arm: max(epochs.get(source, 0.0), 1.0) for arm, epochs in arms.items()}
        low, high = min(repeated, key=repeated.__getitem__), max(repeated, key=repeated.__getitem__)
        if repeated[high] - repeated[low] < 0.01:
            continue
        least = f"{repeated[low]:.3g} times" if repeated[low] > 1 else "at most once"
        found.append(
            f"'{source}' is read {repeated[high]:.3g} times by {high}, and {least} by {low}: repetition differs as well as the "
            "mixture; give the source more documents, or train on fewer tokens"
        )
    return found
