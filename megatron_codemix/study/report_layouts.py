"""The report's section on layouts: which arm had which, and how far an arm and its twins are apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from megatron_codemix.study.agreement import loss_differences
from megatron_codemix.study.figures import Difference, agreement_figure
from megatron_codemix.study.page import element, figure, table
from megatron_codemix.study.words import listed, share_name, small

Results = dict[str, Any]


def layouts_section(results: Results) -> list[str]:
    """Nothing for a study without named layouts."""
    if not any(arm["layout"].get("name") for arm in results["arms"]):
        return []
    return [element("h2", "Layouts"), *_who_had_which(results), *_agreement(results)]


def degrees(layout: dict[str, Any]) -> str:
    """A layout in short: `TP2 PP2`, `DP2, distributed optimizer`, `1 process`."""
    axes = (("TP", "tensor"), ("PP", "pipeline"), ("CP", "context"), ("DP", "data"))
    words = [f"{letters}{layout[axis]}" for letters, axis in axes if layout.get(axis, 1) > 1]
    options = [name.replace("_", " ") for name in ("distributed_optimizer",) if layout.get(name)]
    if layout.get("sequence"):
        options.append("sequence parallel")
    if layout.get("virtual_stages", 1) > 1:
        options.append(f"{layout['virtual_stages']} virtual stages")
    return ", ".join([" ".join(words) or "1 process", *options])


def largest_difference(results: Results) -> float | None:
    """The most that a layout moved held-out bits per byte; None where no twin was evaluated."""
    values = [value for pair in results.get("agreement", {}).get("pairs", []) for value in pair["held_out"].values()]
    return max(values, default=None)


def _who_had_which(results: Results) -> list[str]:
    arms, twins = results["arms"], results["twins"]
    by_turns = sorted(arms, key=lambda arm: arm["seed"])  # down the shares, seed after seed: the order they were named in
    named = {arm["layout"]["name"]: arm["layout"] for arm in [*by_turns, *twins]}
    rows = []
    for name, layout in named.items():
        mine = [arm for arm in arms if arm["layout"]["name"] == name]
        shares = [share_name(results["vary"], share) for share in sorted({arm["share"] for arm in mine})]
        again = [twin for twin in twins if twin["layout"]["name"] == name]
        rows.append([name, degrees(layout), listed(shares) if shares else "–", *map(str, (layout["processes"], len(mine), len(again)))])
    seeds = sorted({arm["seed"] for arm in arms})
    grid = []
    for share in sorted({arm["share"] for arm in arms}):
        cells = []
        for seed in seeds:
            names = [arm["layout"]["name"] for kind in (arms, twins) for arm in kind if (arm["share"], arm["seed"]) == (share, seed)]
            cells.append(f"{names[0]}, again as {listed(names[1:])}" if names[1:] else names[0] if names else "–")
        grid.append([share_name(results["vary"], share), *cells])
    return [
        element(
            "p",
            "Arms take turns at the layouts, so that no share has a layout of its own, and a difference between shares is not the "
            "layout's. Some arms are trained again under another layout, with the same data and initial weights: such a twin is the same "
            "model, and counts in this section only.",
        ),
        table(["layout", "in short", "trains models of", "processes", "models", "twins"], rows, left=3),
        table(["mixture", *(f"seed {seed}" for seed in seeds)], grid, left=1 + len(seeds)),
    ]


def _agreement(results: Results) -> list[str]:
    pairs, seeds = results["agreement"]["pairs"], results["agreement"]["seeds"]
    if not pairs:
        return [element("p", "No arm was trained under two layouts, so this study does not say what they do; set 'twins'.", "note")]
    measured = [pair for pair in pairs if pair["loss"]]
    pieces = [element("h3", "What a layout does to a model, and what a seed does")]
    if not measured:
        return [*pieces, element("p", "No arm and its twin are trained yet.", "note")]
    sources = list(dict.fromkeys(source for item in measured for source in item["validation"]))
    domains = list(dict.fromkeys(domain for item in measured for domain in item["held_out"]))
    headings = ["trained twice", "compared", "loss, largest", "at step", "loss, last step"]
    headings += [f"validation {source}" for source in sources] + [f"held-out {domain}" for domain in domains]

    def numbers(item: dict[str, Any]) -> list[str]:
        loss = item["loss"]
        return [
            small(loss["largest"]),
            str(loss["at_step"]),
            small(loss["last"]),
            *(small(item["validation"].get(source, {}).get("last")) for source in sources),
            *(small(item["held_out"].get(domain)) for domain in domains),
        ]

    rows = [[pair["arm"], _compared(pair, pairs), *numbers(pair)] for pair in measured]
    rows += [[share_name(results["vary"], item["share"]), "seed with seed", *numbers(item)] for item in seeds if item["loss"]]
    note = (
        "Absolute differences: training loss in nats per token, the largest of all steps and that of the last; validation (at the last "
        "step) and held-out documents in bits per byte. Under each share: the largest between two of its seeds, which also differ in "
        "the order of their data. Layouts add the same numbers in another order, and training amplifies what one step rounded."
    )
    return [
        *pieces,
        *(element("p", sentence) for sentence in _in_words(pairs, seeds)),
        figure(_drawn(results), "Absolute difference of training loss over steps, between twins and between seeds", _CAPTION),
        table(headings, rows, left=2),
        element("p", note, "note"),
    ]


_CAPTION = (
    "Coloured: an arm and its twin, the colour is the share. Grey: two seeds of one share. Steps at which two losses are equal to the "
    "last digit have no point."
)


def _in_words(pairs: Sequence[dict[str, Any]], seeds: Sequence[dict[str, Any]]) -> list[str]:
    """What layouts and seeds do to held-out bits per byte, in one sentence."""
    layouts = [value for pair in pairs for value in pair["held_out"].values()]
    between = [value for item in seeds for value in item["held_out"].values()]
    if not layouts:
        return []
    sentence = f"Layouts move held-out bits per byte by at most {small(max(layouts))}"
    if between:
        low, high = small(min(between)), small(max(between))
        sentence += f"; seeds of one share move them by {low if low == high else f'{low} to {high}'}"
    return [sentence + "."]


def _compared(pair: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> str:
    """`tp2 with single`: that which all are compared with comes last."""
    one, other = pair["layouts"]
    shared = [sum(name in known["layouts"] for known in pairs) for name in (one, other)]
    return f"{other} with {one}" if shared[0] >= shared[1] else f"{one} with {other}"


def _drawn(results: Results) -> str:
    originals = {arm["name"]: arm for arm in results["arms"]}
    twins = []
    for pair, twin in zip(results["agreement"]["pairs"], results["twins"]):
        original = originals[pair["arm"]]
        compared = _compared(pair, results["agreement"]["pairs"])
        label = f"{share_name(results['vary'], pair['share'])}, seed {pair['seed']}: {compared}"
        twins.append(Difference(label, pair["share"], *loss_differences(original, twin)))
    seeds = [
        Difference("", share, *loss_differences(one, other))
        for share in sorted({arm["share"] for arm in originals.values()})
        for one, other in combinations([arm for arm in originals.values() if arm["share"] == share], 2)
    ]
    return agreement_figure([item for item in twins if item.steps], [item for item in seeds if item.steps])
