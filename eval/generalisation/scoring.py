"""Items and metrics of one part of a benchmark under several fine-tuning seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.engine import Completion
from eval.generalisation.benchmarks import Benchmark, Verdict
from eval.generalisation.interval import over_seeds
from eval.generalisation.reading import Example
from eval.outcome import Metrics, Outcome, mean

VERSION = 1
"""Raised whenever the same fine-tuned model would be given other numbers."""


def score_items(benchmark: Benchmark, examples: Sequence[Example], completions: Sequence[Completion], seed: int) -> list[dict[str, Any]]:
    """One item per row, in order. Outputs are compared word by word: spaces are collapsed first, since tokenizers decode them freely."""
    items = []
    for example, completion in zip(examples, completions, strict=True):
        said = " ".join(completion.text.split())
        verdict = benchmark.judge(example, said)
        items.append(_item(example, said, verdict, seed) | {"finish": completion.finish, "tokens": completion.tokens})
    return items


def _item(example: Example, said: str, verdict: Verdict, seed: int) -> dict[str, Any]:
    return {
        "id": f"{example.line}/{seed}",
        "cluster": str(example.line),
        "seed": seed,
        "type": example.type,
        "input": example.input,
        "output": said,
        "wanted": example.output,
        "score": verdict.score,
        "well_formed": int(verdict.well_formed),
        "reason": verdict.reason,
        **verdict.details,
        **({"errors": {kind: count for kind, count in verdict.errors.items() if count}} if verdict.errors else {}),
    }


def summarise(items_by_seed: dict[int, list[dict[str, Any]]], errors: Sequence[str]) -> Outcome:
    """Metrics over seeds: means of the seeds' own figures, with the standard error and the 95 % t interval of the headline.

    exact_match, well_formed, exact_match_given_well_formed (over seeds with well-formed outputs), details, exact_match per type and
    per seed; counts over all seeds: rows, seeds, reason_*, errors_*.
    """
    seeds = list(items_by_seed.values())
    items = [item for some in seeds for item in some]
    metrics: Metrics = {}
    for name, key in (("exact_match", "score"), ("well_formed", "well_formed")):
        metrics |= _interval(name, [mean([item[key] for item in some]) for some in seeds])
    given = [[item["score"] for item in some if item["well_formed"]] for some in seeds]
    if any(given):
        metrics |= _interval("exact_match_given_well_formed", [mean(scores) for scores in given if scores])
    for detail in dict.fromkeys(key for item in items for key in item if key in DETAILS):
        rated = [[item[detail] for item in some if detail in item] for some in seeds]
        metrics |= _interval(detail, [mean(values) for values in rated if values])
    metrics |= {"rows": len(seeds[0]), "seeds": len(seeds)}
    metrics |= {f"exact_match_seed_{seed}": mean([item["score"] for item in some]) for seed, some in items_by_seed.items()}
    types = sorted({item["type"] for item in items})
    if len(types) > 1:
        metrics |= _by_type(types, seeds)
    for reason in sorted({item["reason"] for item in items}):
        metrics[f"reason_{reason}"] = sum(item["reason"] == reason for item in items)
    with_errors = [item["errors"] for item in items if "errors" in item]
    metrics["items_with_argument_errors"] = sum(any(kind in errors for kind in found) for found in with_errors)
    metrics |= {f"errors_{kind}": sum(found.get(kind, 0) for found in with_errors) for kind in errors}
    for finish in ("end", "length"):
        metrics[f"ended_by_{'end_of_text' if finish == 'end' else finish}"] = sum(item["finish"] == finish for item in items)
    return Outcome(metrics, items)


DETAILS = ("first_word", "second_word", "main_verb", "same_words")
"""0/1 marks of items that are metrics of their own."""


def _by_type(types: Sequence[str], seeds: Sequence[list[dict[str, Any]]]) -> Metrics:
    found: Metrics = {}
    for kind in types:
        chosen = [[item for item in some if item["type"] == kind] for some in seeds]
        found |= _interval(f"exact_match_{kind}", [mean([item["score"] for item in some]) for some in chosen], bounds=False)
        found[f"well_formed_{kind}"] = mean([item["well_formed"] for some in chosen for item in some])
    return found


def _interval(name: str, values: Sequence[float], bounds: bool = True) -> Metrics:
    found = over_seeds(values)
    metrics: Metrics = {name: found.mean}
    if found.stderr is not None:
        metrics[f"{name}_stderr"] = found.stderr
    if bounds and found.low is not None and found.high is not None:
        metrics |= {f"{name}_low": found.low, f"{name}_high": found.high}
    return metrics
