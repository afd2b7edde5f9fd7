"""results.json and report.html of a study.

    codemix study report STUDY.yaml        # or the study's folder

The page asks nothing of any network; every number in it is in results.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_codemix.files import write_json, write_text
from megatron_codemix.study.collect import collect
from megatron_codemix.study.differences import bits_per_byte_tasks, headline_metrics, values_of
from megatron_codemix.study.figures import Curve, Points, consumption_figure, loss_figure, share_figure, validation_figure
from megatron_codemix.study.page import element, facts, figure, page, table
from megatron_codemix.study.plan import StudyPlan
from megatron_codemix.study.report_controls import controls_section
from megatron_codemix.study.report_layouts import largest_difference, layouts_section
from megatron_codemix.study.sections import corpus_section, environment_section, leaked_of_all, runs_section
from megatron_codemix.study.words import count, listed, percent, share_name, signed, small

Results = dict[str, Any]


def write_report(plan: StudyPlan) -> Path:
    """Read the study, write STUDY/results.json and STUDY/report.html; returns the report's path."""
    results = collect(plan)
    write_json(plan.output / "results.json", results)
    path = plan.output / "report.html"
    write_text(path, render(results))
    return path


def render(results: Results) -> str:
    """The report of a study's results (the content of results.json) as one HTML document."""
    sections: list[Callable[[Results], list[str]]] = [
        _head,
        _shares_section,
        _tasks_section,
        controls_section,
        _training_section,
        layouts_section,
        _consumption_section,
        corpus_section,
        runs_section,
        environment_section,
        _foot,
    ]
    return page(f"Study {results['study']}", [piece for section in sections for piece in section(results)])


def _head(results: Results) -> list[str]:
    arms, vary = results["arms"], results["vary"]
    shares, seeds = sorted({arm["share"] for arm in arms}), sorted({arm["seed"] for arm in arms})
    models = [arm["model"] for arm in arms if arm["model"]]
    pieces = [
        element("p", "codemix study", "eyebrow"),
        element("h1", results["study"]),
        element(
            "p",
            f"{len(arms)} models: {listed([percent(share) for share in shares])} {vary} in the training tokens, "
            f"the rest {results['against']}, each with {'seed' if len(seeds) == 1 else 'seeds'} {listed(list(map(str, seeds)))}. "
            + _equal_words(results),
            "lead",
        ),
    ]
    if results["banner"]:
        pieces.append(element("p", results["banner"], "banner"))
    pieces += [element("p", f"Caution: {caution}.", "banner") for caution in results.get("cautions", [])]
    everything = [*arms, *results.get("controls", []), *results["twins"]]
    troubled = [f"{arm['name']} ({arm['state']})" for arm in everything if arm["state"] != "complete"]
    if troubled:
        pieces.append(element("p", f"This report is not complete: {listed(troubled)}.", "banner alarm"))
    audits = sum(arm["audit"]["verdict"] == "passed" for arm in everything)
    tiles = [("models trained", f"{len(models)} of {len(arms)}")]
    if models:
        tiles += [
            ("parameters", _spread([model["parameters"] for model in models])),
            ("target tokens a model", _spread([model["target_tokens"] for model in models])),
            ("tokens per parameter", _spread([model["tokens_per_parameter"] for model in models], "{:.2f}".format)),
        ]
    if (moved := largest_difference(results)) is not None:
        tiles.append(("bits per byte that a layout moves, at most", small(moved)))
    tiles += [("audits passed", f"{audits} of {len(everything)}"), ("held-out documents leaked", leaked_of_all(results))]
    return [*pieces, facts(tiles)]


def _equal_words(results: Results) -> str:
    names = {arm["layout"].get("name") for arm in results["arms"]} - {None}
    rest = "Everything else is equal."
    if results.get("mode") == "additive":
        rest = f"Every arm has as much {results['against']}, and {results['vary']} on top: arms with more of it are longer too."
    if not names:
        return rest
    again = len(results["twins"])
    told = f", and {again} {'is' if again == 1 else 'are'} trained again under another one to see what it does" if again else ""
    return f"They take turns at {len(names)} layout{'s' if len(names) > 1 else ''}{told}. {rest}"


def _spread(values: list[Any], words: Callable[[Any], str] = count) -> str:
    low, high = words(min(values)), words(max(values))
    return low if low == high else f"{low} – {high}"


def _shares_section(results: Results) -> list[str]:
    domains, vary = bits_per_byte_tasks(results["arms"]), results["vary"]
    if not domains:
        return []
    panels = []
    for domain in domains:
        baseline = {(arm["share"], arm["seed"]): arm["unigram"][domain] for arm in results["arms"] if domain in arm["unigram"]}
        panels.append(Points(f"held-out {domain}", values_of(results["arms"], domain, "bits_per_byte"), baseline))
    caption = (
        "Every point is one trained model; the line joins the means over seeds. Bits per byte: total negative log-likelihood of the "
        "held-out documents, end of text included, over their UTF-8 bytes. The unigram model knows only how often each token occurs in "
        "what the arm read; where it lies far above, the axis is broken. Scales differ between panels."
    )
    headings = ["model", *(words for domain in domains for words in (f"{domain}, bits/byte", f"{domain}, unigram"))]
    rows = []
    for arm in results["arms"]:
        cells = []
        for domain in domains:
            cells += [
                _number(arm["evaluation"].get(domain, {}).get("metrics", {}).get("bits_per_byte")),
                _number(arm["unigram"].get(domain)),
            ]
        rows.append([arm["name"], *cells])
    return [
        element("h2", f"Held-out bits per byte against the share of {vary}"),
        figure(share_figure(panels, vary), f"Bits per byte on {listed(domains)} against the share of {vary}, a point per model", caption),
        table(headings, rows),
        *_differences(results, {"bits_per_byte"}),
    ]


def _differences(results: Results, metrics: set[str], note: bool = True) -> list[str]:
    """The table of paired differences of some metrics; `note`: with the words that say how to read it."""
    chosen = [item for item in results["comparisons"] if item["metric"] in metrics]
    if not chosen:
        return []
    seeds = sorted({seed for item in chosen for row in item["differences"] for seed in row["by_seed"]}, key=int)
    reference = share_name(results["vary"], chosen[0]["differences"][0]["reference"])
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
    words = (
        "The unit is the trained model. Arms of one seed share initialisation and, per source, the order of what is read, so each seed "
        f"gives one difference; there {'are' if len(seeds) > 1 else 'is'} {len(seeds)} per mixture, and they are listed, not tested. "
        "Documents and prompts are not replicates of a mixture."
    )
    return [
        element("h3", f"Difference from {reference}, paired by seed"),
        table(["measure", "mixture", *(f"seed {seed}" for seed in seeds), "mean", "same sign in every seed"], rows, left=2),
        *([element("p", words, "note")] if note else []),
    ]


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _tasks_section(results: Results) -> list[str]:
    kinds = {name: task for arm in results["arms"] for name, task in arm["evaluation"].items() if task["kind"] != "bits_per_byte"}
    columns = [(name, metric) for name, task in kinds.items() for metric in headline_metrics(task["kind"], task["metrics"])]
    if not columns:
        return []
    rows = []
    for arm in results["arms"]:
        metrics = {name: task["metrics"] for name, task in arm["evaluation"].items()}
        rows.append([arm["name"], *(_number(metrics.get(name, {}).get(metric)) for name, metric in columns)])
    sizes = "; ".join(f"{name}: {task['num_items']:,} items" for name, task in kinds.items())
    headings = ["model", *(f"{name}: {metric.replace('_', ' ')}" for name, metric in columns)]
    return [
        element("h2", "Tasks"),
        table(headings, rows),
        element("p", sizes + ".", "note"),
        *_differences(results, {metric for _, metric in columns}, note=not bits_per_byte_tasks(results["arms"])),
    ]


def _training_section(results: Results) -> list[str]:
    curves = [
        Curve(arm["share"], arm["seed"], arm["curve"]["tokens"], arm["curve"]["loss"]) for arm in results["arms"] if arm["curve"]["tokens"]
    ]
    if not curves:
        return []
    caption = (
        "One line per run, mean of consecutive steps where there are many. Mixtures differ, so lines of different colour are losses on "
        "different text: compare them on held-out documents, not here."
    )
    pieces = [
        element("h2", "Training"),
        figure(loss_figure(curves, results["vary"]), "Training loss of every run over target tokens", caption),
    ]
    panels: dict[str, list[Curve]] = {}
    for arm in results["arms"]:
        for source in {line["source"]: None for line in arm["validation"]}:
            lines = [line for line in arm["validation"] if line["source"] == source]
            panels.setdefault(source, []).append(
                Curve(arm["share"], arm["seed"], [line["tokens"] for line in lines], [line["bits_per_byte"] for line in lines])
            )
    if any(len(curve.tokens) > 1 for curves in panels.values() for curve in curves):
        caption = "The trainer's own validation, on windows of each source's held-out split; the marker is the seed."
        pieces.append(
            figure(validation_figure(panels, results["vary"]), "Validation bits per byte of every run over target tokens", caption)
        )
    return pieces


def _consumption_section(results: Results) -> list[str]:
    arms = [arm for arm in results["arms"] if arm["consumed"]]
    if not arms:
        return []
    sources = list(results["corpus"])
    drawn = consumption_figure(
        [(arm["name"], {name: part["targets"] for name, part in arm["consumed"].items()}) for arm in arms],
        {name: source["modality"] for name, source in results["corpus"].items()},
    )
    rows = [
        [
            arm["name"],
            name,
            f"{part['windows']:,}",
            f"{part['targets']:,}",
            percent(part["token_share"], 2),
            percent(part["byte_share"], 2),
            f"{part['epochs']:.3f}",
        ]
        for arm in arms
        for name, part in ((name, arm["consumed"][name]) for name in sources if name in arm["consumed"])
    ]
    return [
        element("h2", "What each run consumed"),
        element("p", "Counted from the batches while training (the ledger in each run's last checkpoint), not derived from the plan."),
        figure(drawn, "Target tokens consumed per source by every run", "Target tokens per source."),
        table(["model", "source", "windows", "target tokens", "share of tokens", "share of bytes", "epochs"], rows, left=2),
    ]


def _foot(results: Results) -> list[str]:
    return [
        f"<footer>Written by codemix, {results['created']}. Every number of this page is in <code>results.json</code> beside it.</footer>"
    ]
