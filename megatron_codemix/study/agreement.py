"""What a layout does to a model: each twin against the arm it repeats, beside what another seed does.

A twin has its original's data, initial weights and schedule; where the two differ, it is the layout's doing: sums
in another order, rounded otherwise. The same measure between two seeds of one share is the scale to read it by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from megatron_codemix.study.differences import bits_per_byte_tasks

Arm = dict[str, Any]
"""An entry of `arms` or `twins` of results.json."""


def agreement(arms: Sequence[Arm], twins: Sequence[Arm]) -> dict[str, Any]:
    """`pairs`: each twin against its original; `seeds`: per share, the largest difference between two of its seeds.

    Each has `loss` (nats per token: `largest` of all steps, `at_step`, `last`), `validation` (source → bits per byte: `largest`
    of all validations, `last`) and `held_out` (domain → bits per byte); what one of the two lacks is left out. All are absolute.
    """
    originals = {arm["name"]: arm for arm in arms}
    pairs = [
        {
            "share": twin["share"],
            "seed": twin["seed"],
            "arm": twin["twin_of"],
            "twin": twin["name"],
            "layouts": [originals[twin["twin_of"]]["layout"]["name"], twin["layout"]["name"]],
            **difference(originals[twin["twin_of"]], twin),
        }
        for twin in twins
    ]
    seeds = []
    for share in sorted({arm["share"] for arm in arms}) if twins else []:
        found = [difference(one, other) for one, other in combinations([arm for arm in arms if arm["share"] == share], 2)]
        if found:
            seeds.append({"share": share, **_largest(found)})
    return {"pairs": pairs, "seeds": seeds}


def loss_differences(one: Arm, other: Arm) -> tuple[list[int], list[float]]:
    """Steps that both have, and |difference| of their training losses there, nats per token."""
    theirs = dict(zip(other["curve"]["step"], other["curve"]["loss"]))
    both = [(step, abs(loss - theirs[step])) for step, loss in zip(one["curve"]["step"], one["curve"]["loss"]) if step in theirs]
    return [step for step, _ in both], [value for _, value in both]


def difference(one: Arm, other: Arm) -> dict[str, Any]:
    """How far two trained models and their trainings are apart."""
    steps, losses = loss_differences(one, other)
    loss = {}
    if losses:
        loss = {"largest": max(losses), "at_step": steps[losses.index(max(losses))], "last": losses[-1]}
    validation: dict[str, dict[str, float]] = {}
    theirs = {(line["source"], line["step"]): line["bits_per_byte"] for line in other["validation"]}
    for line in one["validation"]:
        key = (line["source"], line["step"])
        if key in theirs:
            value = abs(line["bits_per_byte"] - theirs[key])
            before = validation.get(line["source"], {"largest": 0.0})
            validation[line["source"]] = {"largest": max(value, before["largest"]), "last": value}
    held_out = {}
    for task in bits_per_byte_tasks([one]):
        if task in other["evaluation"]:
            first, second = (arm["evaluation"][task]["metrics"]["bits_per_byte"] for arm in (one, other))
            held_out[task] = abs(first - second)
    return {"loss": loss, "validation": validation, "held_out": held_out}


def _largest(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest of each number over several differences."""
    losses = [item["loss"] for item in found if item["loss"]]
    sources = _keys(item["validation"] for item in found)
    return {
        "loss": {**max(losses, key=lambda loss: loss["largest"]), "last": max(loss["last"] for loss in losses)} if losses else {},
        "validation": {
            source: {
                which: max(item["validation"][source][which] for item in found if source in item["validation"])
                for which in ("largest", "last")
            }
            for source in sources
        },
        "held_out": {
            task: max(item["held_out"][task] for item in found if task in item["held_out"])
            for task in _keys(item["held_out"] for item in found)
        },
    }


def _keys(mappings: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
