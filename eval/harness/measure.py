"""The kind `standard`: a definition of lm-evaluation-harness, its evaluator, our engine, our items."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from eval.engine import Engine
from eval.harness.schemas import HUB, RENDERED
from eval.harness.sources import Rows, load_rows
from eval.outcome import Metrics, Outcome, mean
from eval.tasks.choices import choice_item, choice_metrics, clusters_of, continuation_metrics, share_metrics
from eval.tasks.standard_options import StandardTask
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file, sha256_json

try:
    import lm_eval.api.task
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from tqdm import tqdm

    from eval.harness.definitions import OWN, build_task, definition_version
    from eval.harness.model import HarnessModel, Likelihood
except ImportError as missing:  # every other kind of task works without
    raise UserError(
        f"standard tasks need lm-evaluation-harness, which cannot be imported ({missing}); pip install -c constraints.txt lm_eval==0.4.13"
    ) from None

VERSION = 2


def read(task: StandardTask) -> ConfigurableTask:
    """The task, built over its rows. Raises UserError for a bad row and for rows that the definition cannot read."""
    rows = _rows(task)
    shots = None if task.shots is None else load_rows(task.shots, task.definition).values
    built = build_task(_definition(task, rows), None if rows is None else rows.values, shots, task.num_fewshot)
    if built.OUTPUT_TYPE not in _ITEMS:
        raise UserError(
            f"definition '{task.definition}': its requests are {built.OUTPUT_TYPE}, which are not measured here; {', '.join(_ITEMS)} are"
        )
    return built


def _rows(task: StandardTask) -> Rows | None:
    if task.data is not None:
        return load_rows(task.data, task.definition, task.limit, task.rows)
    if not task.hub:
        raise UserError(f"definition '{task.definition}': no 'data' is given; name its file, or allow --hub to fetch it")
    return None


def _definition(task: StandardTask, rows: Rows | None) -> str:
    return "rendered" if rows is not None and rows.schema == RENDERED else task.definition


def definition(task: StandardTask) -> dict[str, Any]:
    """Whose definition it is, and its version there."""
    name = _definition(task, _rows(task))
    source = "codemix" if name in OWN else f"lm-evaluation-harness, {definition_version(name)}"
    return {"name": name, "version": read(task).VERSION, "source": source}


def data_record(task: StandardTask) -> list[dict[str, Any]]:
    """What was read: files with their contents' hashes, or the hub's dataset with a hash over its rows."""
    rows = _rows(task)
    if rows is None:
        built = read(task)
        docs = [dict(doc) for _, doc in built.doc_iterator(limit=task.limit)]
        name = "/".join(str(part) for part in (built.DATASET_PATH, built.DATASET_NAME) if part)
        return [{"file": f"hub:{name}", "sha256": sha256_json(_plain(docs)), "rows": len(docs), "schema": HUB}]
    assert task.data is not None
    found = [{"file": task.data.name, "sha256": sha256_file(task.data), "rows": len(rows.values), "schema": rows.schema}]
    if task.shots is not None:
        shots = load_rows(task.shots, task.definition)
        found.append({"file": task.shots.name, "sha256": sha256_file(task.shots), "rows": len(shots.values), "schema": shots.schema})
    return found


def measure(engine: Engine, task: StandardTask, name: str) -> Outcome:
    """Items by the definition's kind of request; all have id, input, output and score (docs/evaluation.md)."""
    built = read(task)
    rows = _rows(task)
    ids = rows.ids if rows is not None and len(rows.ids) == len(built.eval_docs) else None
    model = HarnessModel(engine, name, task.start_token, task.max_new_tokens)
    with quiet():
        found: Any = evaluate(model, {"tasks": {name: built}}, limit=task.limit, bootstrap_iters=0)
    by_document: dict[int, list[dict[str, Any]]] = {}
    for sample in found["samples"][name]:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    items, metrics = _ITEMS[str(built.OUTPUT_TYPE)](built, model, list(by_document.values()))
    for item, (document, samples) in zip(items, by_document.items(), strict=True):
        doc = samples[0]["doc"]
        # the definition's own identity first: one that makes several questions of a row may make as many as there are rows
        item["id"] = str(doc["id"]) if "id" in doc else ids[document] if ids is not None else str(document + 1)
    return Outcome(metrics | _own_metrics(found["results"][name]), [{"id": item["id"], **item} for item in items])


def _own_metrics(results: dict[str, Any]) -> Metrics:
    """The harness's own figures, under its own names: lm_eval_acc, lm_eval_exact_match_strict-match."""
    found: Metrics = {}
    for key, value in results.items():
        metric, comma, filter_name = key.partition(",")
        if comma and "_stderr" not in metric and isinstance(value, (int, float)) and math.isfinite(value):
            found[f"lm_eval_{metric}" + ("" if filter_name in ("none", "remove_whitespace") else f"_{filter_name}")] = float(value)
    return found


def _choices(built: ConfigurableTask, model: HarnessModel, documents: list[list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], Metrics]:
    """Multiple choice, by its log-likelihoods."""
    items = []
    for sample, *_ in documents:
        pairs = [(str(context), str(continuation)) for context, continuation in sample["arguments"]]
        found = [model.likelihoods[pair] for pair in pairs]
        if built.multiple_input:  # as in WinoGrande: choices stand in the context, one continuation follows
            texts = [str(sample["target"])] * len(pairs)
            shown, right = [context for context, _ in pairs], [int(str(built.doc_to_text(sample["doc"])))]
            question: Any = pairs[0][1]
        else:
            texts = shown = [str(choice) for choice in built.doc_to_choice(sample["doc"])]
            right, question = _right(sample["target"], texts, built), pairs[0][0]
        scored = choice_item(texts, right[0], [one.log_probability for one in found], right[1:])
        output = shown[scored["chosen"]]
        items.append({"input": question, "output": output, "choices": shown, **scored, **_lengths(found), **_cluster(sample)})
    metrics = choice_metrics(items)
    return items, metrics | {"cut_contexts": sum(item["cut"] for item in items)}


def _right(target: Any, choices: list[str], built: ConfigurableTask) -> list[int]:
    """Indices of the right choices. Raises UserError where the definition names one that is not there."""
    targets = target if isinstance(target, list) else [target]
    found = [at for one in targets if 0 <= (at := _position(one, choices)) < len(choices)]
    if not found or len(found) != len(targets):
        raise UserError(
            f"definition '{built.config.task}': its right answer {target!r} is none of the {len(choices)} choices; mend the row"
        )
    return found


def _position(target: Any, choices: list[str]) -> int:
    """Of a target that is an index, or a choice's text; -1: it is neither."""
    if isinstance(target, str):
        return choices.index(target) if target in choices else -1
    return target if isinstance(target, int) else -1


def _lengths(found: list[Likelihood]) -> dict[str, Any]:
    return {"tokens": [one.tokens for one in found], "cut": int(any(one.cut for one in found))}


def _cluster(sample: dict[str, Any]) -> dict[str, str]:
    """Questions about one text are not independent of one another."""
    return {"cluster": str(sample["doc"]["cluster"])} if "cluster" in sample["doc"] else {}


def _likelihoods(
    built: ConfigurableTask, model: HarnessModel, documents: list[list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], Metrics]:
    """One right continuation, as in LAMBADA."""
    items = []
    for sample, *_ in documents:
        context, continuation = (str(text) for text in sample["arguments"][0])
        found = model.likelihoods[context, continuation]
        num_bytes = max(1, len(continuation.strip().encode("utf-8")))
        items.append(
            {
                "input": context,
                "output": continuation,
                "score": int(found.greedy),
                "correct": int(found.greedy),
                "log_probability": found.log_probability,
                "gold_log_probability_per_byte": found.log_probability / num_bytes,
                "bytes": num_bytes,
                "tokens": found.tokens,
                "cut": int(found.cut),
                **_cluster(sample),
            }
        )
    return items, continuation_metrics(items)


def _completions(
    built: ConfigurableTask, model: HarnessModel, documents: list[list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], Metrics]:
    """Generated answers, and how likely the first right one was."""
    golds = [_gold_texts(samples[0]["target"]) for samples in documents]
    prompts = [str(samples[0]["arguments"][0][0]) for samples in documents]
    delimiter = str(built.config.target_delimiter)
    scored = model.score_pairs([(prompt, delimiter + gold[0]) for prompt, gold in zip(prompts, golds, strict=True)])
    items = []
    for samples, prompt, gold, likelihood in zip(documents, prompts, golds, scored, strict=True):
        completion = model.completions[prompt]
        matches = {str(sample["filter"]): _exact(sample, completion.text) for sample in samples}
        num_bytes = max(1, len(gold[0].encode("utf-8")))
        items.append(
            {
                "input": prompt,
                "output": completion.text,
                "references": gold,
                "answers": {str(sample["filter"]): sample["filtered_resps"][0] for sample in samples},
                "score": next(iter(matches.values())),
                "exact_match": next(iter(matches.values())),
                "matches": matches,
                "gold_log_probability": likelihood.log_probability,
                "gold_log_probability_per_byte": likelihood.log_probability / num_bytes,
                "finish": completion.finish,
                "tokens": completion.tokens,
                "cut": int(completion.cut_prompt),
                **_cluster(samples[0]),
            }
        )
    assert model.decoding is not None
    metrics = share_metrics("exact_match", [item["exact_match"] for item in items], clusters_of(items))
    filters = list(items[0]["matches"])
    for filter_name in filters if len(filters) > 1 else ():
        metrics[f"exact_match_{filter_name}"] = mean([item["matches"][filter_name] for item in items])
    metrics |= {
        "gold_log_probability_per_byte": mean([item["gold_log_probability_per_byte"] for item in items]),
        "items": len(items),
        "max_new_tokens": model.decoding.max_new_tokens,
        "cut_prompts": sum(item["cut"] for item in items),
    }
    return items, metrics


def _exact(sample: dict[str, Any], text: str) -> int:
    """The definition's verdict; but an empty completion is never right.

    lm-evaluation-harness takes punctuation off both sides, so that nothing equals an alias such as "?".
    """
    return int(bool(text.strip()) and float(sample.get("exact_match", 0.0)) > 0.0)


def _gold_texts(target: Any) -> list[str]:
    return [str(one) for one in target] if isinstance(target, list) else [str(target)]


_ITEMS = {"multiple_choice": _choices, "loglikelihood": _likelihoods, "generate_until": _completions}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's bars (ours are shown) and remarks."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with mock.patch.object(lm_eval.api.task, "tqdm", lambda rows, **_: tqdm(rows, disable=True)):
        yield


def _plain(value: Any) -> Any:
    """JSON of a row, whatever the dataset holds."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
