"""What the stages of a run ask of each other: names, where each begins, schedules that span several of them."""

from __future__ import annotations

from typing import Any

from megatron_codemix.config.rate import CONTINUE, rate_problems
from megatron_codemix.config.section import is_count, whole


def table_problems(stages: list[Any], branch: bool) -> list[str]:
    """Mistakes between the raw stages of a run, with their paths; branch: whether a trunk's stages come before them."""
    names = [stage.get("name") for stage in stages if isinstance(stage, dict)]
    problems = [
        f"stages: the name '{name}' is used twice; give each stage its own"
        for name in sorted({name for name in names if isinstance(name, str) and names.count(name) > 1})
    ]
    for index, stage in enumerate(stages):
        if not isinstance(stage, dict):
            continue
        rate, where = stage.get("learning_rate"), f"stages[{index}].learning_rate"
        if rate == CONTINUE and index == 0:
            instead = "{peak: continue, …} takes on the rate at which the trunk ended" if branch else "give it a learning rate"
            problems.append(f"{where}: there is no schedule before the first stage to continue; {instead}")
        if isinstance(rate, dict):
            problems += [f"{where}.{problem}" for problem in rate_problems(rate, first=index == 0 and not branch)]
            problems += [f"{where}: {problem}" for problem in _length_problems(rate, stages, index)]
    return problems + _place_problems(stages)


def _length_problems(rate: dict[str, Any], stages: list[Any], index: int) -> list[str]:
    """Warm-up and decay have to fit into the stages that a schedule spans."""
    spanned = 1
    while index + spanned < len(stages) and _continues(stages[index + spanned]):
        spanned += 1
    tokens = [whole(stage.get("tokens")) for stage in stages[index : index + spanned]]
    parts = [whole(rate.get(key, 0)) for key in ("warmup_tokens", "decay_tokens")]
    numbers = all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts)
    if not numbers or not all(is_count(part) for part in tokens) or sum(parts) <= sum(tokens):
        return []
    return [f"warm-up and decay together are longer than the {'stage' if spanned == 1 else 'stages'}; shorten them"]


def _continues(stage: Any) -> bool:
    return isinstance(stage, dict) and stage.get("learning_rate") == CONTINUE


def _place_problems(stages: list[Any]) -> list[str]:
    """Stages that say where they begin, and do not begin where the one before ends."""
    problems, reached = [], 0
    for index, stage in enumerate(stages):
        begins = whole(stage.get("begins_at_tokens")) if isinstance(stage, dict) else None
        if isinstance(begins, int) and not isinstance(begins, bool) and begins != reached:
            what = f"leaves a gap of {begins - reached:,} tokens" if begins > reached else f"overlaps by {reached - begins:,} tokens"
            problems.append(
                f"stages[{index}].begins_at_tokens: {begins:,} {what}: the stages before it end at {reached:,}; "
                "change it, or the tokens of one before"
            )
            reached = begins
        tokens = whole(stage.get("tokens")) if isinstance(stage, dict) else None
        if not is_count(tokens):
            break  # reported by its field; what follows cannot be placed
        reached += tokens
    return problems
