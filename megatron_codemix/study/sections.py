"""The report's account of the corpus, the runs and the machine."""

from __future__ import annotations

from typing import Any

from megatron_codemix.study.page import element, table
from megatron_codemix.study.report_layouts import degrees
from megatron_codemix.study.words import listed, seconds, size

Results = dict[str, Any]


def corpus_section(results: Results) -> list[str]:
    """Sources and splits in numbers; held-out documents that also occur in training."""
    rows, leaks = [], []
    for name, source in results["corpus"].items():
        for split, numbers in source["splits"].items():
            ratio = numbers["bytes"] / numbers["tokens"] if numbers["tokens"] else 0.0
            sizes = (f"{numbers['documents']:,}", f"{numbers['bytes']:,}", f"{numbers['tokens']:,}", f"{ratio:.2f}")
            rows.append([name, split, source["modality"], *sizes])
            leaks += [[name, rule, f"{found:,}", f"{numbers['documents']:,}"] for rule, found in numbers["leakage"].items()]
    pieces = [
        element("h2", "Corpus"),
        table(["source", "split", "modality", "documents", "bytes", "tokens", "bytes per token"], rows, left=3),
        element("h3", "Leakage: held-out documents that also occur in training"),
    ]
    note = "Counted when the shards were made, against the training splits of all sources. A document may be counted by several rules."
    if leaks:
        pieces += [table(["source", "rule", "held-out documents", "of"], leaks, left=2), element("p", note, "note")]
    else:
        pieces.append(element("p", "The manifests count none.", "note"))
    return pieces + _unchecked(results)


def _unchecked(results: Results) -> list[str]:
    """Evaluation data that may have been trained on, for all that the manifests say."""
    rows = [[found["file"], ", ".join(found["sources"])] for found in results.get("unchecked_evaluation", [])]
    if not rows:
        return []
    note = "Its items may have been trained on: these sources' manifests do not name it in decontaminated_against."
    pieces = [
        element("h3", "Evaluation data that training data was not compared with"),
        table(["file", "not compared by source"], rows, left=2),
    ]
    return [*pieces, element("p", note, "note")]


def leaked_of_all(results: Results) -> str:
    """Held-out documents that leaked by the strictest rule, of all that were looked at: `12 of 119`."""
    splits = [split for source in results["corpus"].values() for split in source["splits"].values() if split["leakage"]]
    leaked = sum(max(split["leakage"].values()) for split in splits)
    return f"{leaked:,} of {sum(split['documents'] for split in splits):,}" if splits else "0"


def runs_section(results: Results) -> list[str]:
    """Per model: size, layout, audit, time and memory of each stage."""
    shapes = {arm["name"]: arm["model"] for arm in results["arms"] if arm["model"]}
    rows, checks = [], []
    for arm in [*results["arms"], *results.get("controls", []), *results["twins"]]:
        layout, stages = arm["layout"], arm["stages"]
        speed = [value for value in arm["curve"]["tokens_per_second"] if value]
        rows.append(
            [
                arm["name"],
                degrees(layout),
                f"{sorted(speed)[len(speed) // 2]:,.0f}" if speed else "–",
                *(seconds(stages[name]["seconds"]) if name in stages else "–" for name in ("train", "convert", "eval")),
                seconds(sum(stage.get("cpu_seconds", 0.0) for stage in stages.values())),
                size(max((stage["peak_bytes"] for stage in stages.values()), default=0)),
            ]
        )
        said = arm["audit"]["said"].strip().splitlines()
        largest = arm["conversion"].get("largest_difference")
        checks.append([arm["name"], arm["audit"]["verdict"], said[-1] if said else "–", "–" if largest is None else f"{largest:.1e} nats"])
    headings = ["model", "layout", "tokens/s, median", "training", "conversion", "evaluation", "CPU time", "peak memory"]
    note = (
        "Times are those of whole commands, start-up included, over all attempts. CPU time is of all stages and processes; peak memory is "
        "the largest resident set of one process."
    )
    checks_note = (
        "The audit reconciles the ledger, counted from batches, with the plan. Conversion compares the log-probabilities of the trained "
        "model with those of transformers' own code, and refuses to finish where they differ."
    )
    return [
        element("h2", "Models and runs"),
        *_shape(list(shapes.values())),
        element("p", f"Trained by {_all(results, 'engine')} in {_all(results, 'precision')}."),
        table(headings, rows, left=2, wrap=1),
        element("p", note, "note"),
        element("h3", "Checks"),
        table(["model", "audit", "in its own words", "converted model: largest difference"], checks, left=3, wrap=2),
        element("p", checks_note, "note"),
    ]


def _all(results: Results, what: str) -> str:
    """The engine or precision of all runs, each named once."""
    return listed(list(dict.fromkeys(arm["layout"].get(what) or arm[what] for arm in results["arms"])))


def _shape(models: list[dict[str, Any]]) -> list[str]:
    """One sentence per distinct model shape."""
    sentences = {}
    for model in models:
        shape = model["shape"]
        heads = f"{shape['num_attention_heads']} heads"
        if shape["num_query_groups"] not in (None, shape["num_attention_heads"]):
            heads += f" in {shape['num_query_groups']} groups"
        embeddings = "tied" if shape["tied_embeddings"] else "untied"
        sentence = (
            f"{shape['num_layers']} layers × {shape['hidden_size']}, {heads}, feed-forward {shape['ffn_hidden_size']}, vocabulary "
            f"{model['vocab_size']:,} ({model['padded_vocab_size']:,} rows, {embeddings} embeddings): {model['parameters']:,} parameters, "
            f"{model['parameters_without_embeddings']:,} without embeddings."
        )
        sentences[sentence] = None
    return [element("p", sentence) for sentence in sentences]


def environment_section(results: Results) -> list[str]:
    """Versions of what the stages ran on; more than one column when they ran in different places."""
    environments = results["environments"]
    if not environments:
        return []
    names = list(dict.fromkeys(name for environment in environments for name in environment["versions"]))
    headings = ["", *(f"environment {number}" if len(environments) > 1 else "version" for number in range(1, len(environments) + 1))]
    rows = [[name, *(environment["versions"].get(name, "–") for environment in environments)] for name in names]
    pieces = [element("h2", "Environment"), table(headings, rows, left=1 + len(environments))]
    if len(environments) > 1:
        told = [f"environment {number}: {len(environment['ran'])} stages" for number, environment in enumerate(environments, 1)]
        pieces.append(element("p", "; ".join(told) + ".", "note"))
    return pieces
