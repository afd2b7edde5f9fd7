"""The report's section on controls: each arm against what was trained with something else in the place of the varied source."""

from __future__ import annotations

from typing import Any

from megatron_codemix.study.page import element, table
from megatron_codemix.study.words import count, share_name, signed

Results = dict[str, Any]


def controls_section(results: Results) -> list[str]:
    """Nothing for a study without controls."""
    controls = results.get("controls", [])
    if not controls:
        return []
    vary, against = results["vary"], results["against"]
    words = {
        "volume_matched": f"as many tokens, all of them fresh {against}",
        "placebo": f"as many tokens, a placebo in the place of {vary}",
    }
    kinds = list(dict.fromkeys(item["control"] for item in controls))
    pieces = [
        element("h2", "Controls"),
        element(
            "p",
            f"An arm may differ from the one without {vary} by more than the {vary}. A control shares its arm's seed, schedule and number "
            "of tokens: " + "; ".join(f"{kind.replace('_', '-')}, {words[kind]}" for kind in kinds) + ".",
        ),
        table(["control", "of", "target tokens", "state"], [_row(item) for item in controls], left=2),
    ]
    for kind in kinds:
        pieces += _differences(results, kind)
    return pieces


def _row(item: dict[str, Any]) -> list[str]:
    tokens = count(item["model"]["target_tokens"]) if item["model"] else "–"
    return [item["control"].replace("_", "-"), item["control_of"], tokens, item["state"]]


def _differences(results: Results, kind: str) -> list[str]:
    chosen = [item for item in results["against_controls"] if item["control"] == kind]
    if not chosen:
        return [element("p", f"No {kind.replace('_', '-')} control is evaluated yet.", "note")]
    seeds = sorted({seed for item in chosen for row in item["differences"] for seed in row["by_seed"]}, key=int)
    rows = [
        [
            f"{item['task']}, {item['metric'].replace('_', ' ')}",
            share_name(results["vary"], row["share"]),
            *(signed(row["by_seed"][seed]) if seed in row["by_seed"] else "–" for seed in seeds),
            signed(row["mean"]),
            "yes" if row["same_sign"] else "no",
        ]
        for item in chosen
        for row in item["differences"]
    ]
    headings = ["measure", "mixture", *(f"seed {seed}" for seed in seeds), "mean", "same sign in every seed"]
    return [element("h3", f"Difference from the {kind.replace('_', '-')} control, paired by seed"), table(headings, rows, left=2)]
