"""Every number of the report, read from the files of a study: the content of results.json."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.config import RunConfig, padded_vocab_size, parse_config
from megatron_codemix.files import read_json
from megatron_codemix.shards import load_manifest, open_split
from megatron_codemix.study.agreement import agreement
from megatron_codemix.study.baseline import UnigramBaseline
from megatron_codemix.study.cautions import study_cautions
from megatron_codemix.study.contamination import unchecked_evaluation
from megatron_codemix.study.differences import against_controls, comparisons
from megatron_codemix.study.plan import Arm, StudyPlan
from megatron_codemix.study.runlog import of_kind
from megatron_codemix.study.stages import final_checkpoint, read_records, stages_of
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.train import read_log
from megatron_codemix.train.splits import open_cache

FORMAT_VERSION = 1


def collect(plan: StudyPlan) -> dict[str, Any]:
    """Read all arms, finished or not; arms that are not trained to the end have only what there is.

    Raises UserError where a file of a finished stage is missing or unreadable.
    """
    runs = {arm.name: parse_config(arm.config, RunConfig, f"{plan.output}/plan.json, arm {arm.name}") for arm in plan.trained}
    baseline = _Baselines(plan)
    arms, controls, twins = ([_arm(plan, arm, runs[arm.name], baseline) for arm in kind] for kind in (plan.arms, plan.controls, plan.twins))
    return {
        "format_version": FORMAT_VERSION,
        "study": plan.name,
        "banner": plan.banner,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "vary": plan.vary,
        "against": plan.against,
        "corpus": _corpus(list(runs.values())),
        "unchecked_evaluation": [found._asdict() for found in unchecked_evaluation(plan)],
        "environments": _environments(plan),
        "mode": plan.mode,
        "cautions": study_cautions(plan),
        "arms": arms,
        "controls": controls,
        "twins": twins,
        "comparisons": comparisons(arms),
        "against_controls": against_controls(arms, controls),
        "agreement": agreement(arms, twins),
    }


def _arm(plan: StudyPlan, arm: Arm, run: RunConfig, baseline: _Baselines) -> dict[str, Any]:
    records = read_records(plan.arm_folder(arm))
    log = read_log(plan.run_folder(arm)) if (plan.run_folder(arm) / "log.jsonl").exists() else []
    open_stage = next((stage.name for stage in stages_of(plan, arm) if not stage.is_done()), None)
    checkpoint = final_checkpoint(plan, arm)
    found: dict[str, Any] = {
        "name": arm.name,
        "share": arm.share_value,
        "seed": arm.seed,
        "hash": arm.hash,
        "state": "complete" if open_stage is None else f"not complete: {open_stage}",
        "twin_of": arm.twin_of,
        "control": arm.control,
        "control_of": arm.control_of,
        "layout": {
            "name": arm.layout,
            "engine": run.engine,
            "processes": arm.processes,
            "data": arm.data_ranks,
            **run.parallel.model_dump(mode="json"),
            "micro_batch_size": run.micro_batch_size,
        },
        "precision": run.precision,
        "stages": {name: {key: value for key, value in record.items() if key != "environment"} for name, record in records.items()},
        "curve": _curve(of_kind(log, "step")),
        "validation": [{key: value for key, value in line.items() if key != "kind"} for line in of_kind(log, "validation")],
        "audit": _audit(plan, arm, records),
        "conversion": _conversion(plan, arm, records),
        "model": None,
        "consumed": {},
        "evaluation": {},
        "unigram": {},
    }
    if checkpoint is None:
        return found
    opened = Checkpoint.open(checkpoint, contents=False)
    found["consumed"] = _consumed(opened.ledger(), run)
    targets = sum(source["targets"] for source in found["consumed"].values())
    found["model"] = _model(run, opened.record.vocab_size, targets)
    results = plan.run_folder(arm) / "eval" / "results.json"
    if open_stage is None and results.exists():
        tasks = read_json(results, "evaluation")["tasks"]
        kept = ("kind", "metrics", "num_items")
        found["evaluation"] = {name: {key: task[key] for key in kept} for name, task in tasks.items()}
    found["unigram"] = baseline.of(run, {name: source["targets"] for name, source in found["consumed"].items()})
    return found


def _curve(steps: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns of the step lines; wide enough to draw and to check."""
    columns = ("step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds")
    return {column: [line.get(column) for line in steps] for column in columns}


def _audit(plan: StudyPlan, arm: Arm, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The verdict of `codemix audit` and the words it gave it in."""
    record = records.get("audit")
    if record is None:
        return {"verdict": "not run", "said": ""}
    log = plan.arm_folder(arm) / "audit.log"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    begin = max((index for index, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    return {"verdict": "passed" if record["returncode"] == 0 else "failed", "said": "\n".join(lines[begin + 1 :])}


def _conversion(plan: StudyPlan, arm: Arm, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How far the converted model's log-probabilities lay from the trained one's; empty where it is not converted."""
    path = plan.run_folder(arm) / "hf" / "codemix.json"
    if records.get("convert", {}).get("returncode") != 0 or not path.exists():
        return {}
    agreement = read_json(path, "record of a conversion").get("agreement", {})
    return {key: agreement[key] for key in ("largest_difference", "tolerance", "positions") if key in agreement}


def _consumed(ledger: dict[str, Any], run: RunConfig) -> dict[str, dict[str, Any]]:
    """Source → what the ledger counted, its shares in tokens and in bytes, and epochs of its training split."""
    counted = {name: dict(ledger["sources"].get(name, {})) for name in run.sources}
    tokens = sum(source.get("tokens", 0) for source in counted.values())
    num_bytes = sum(source.get("bytes", 0) for source in counted.values())
    consumed = {}
    for name, source in counted.items():
        manifest = load_manifest(run.sources[name].path / run.sources[name].train_split)
        mine = {key: source.get(key, 0) for key in ("windows", "tokens", "targets", "padding", "bytes")}
        consumed[name] = {
            **mine,
            "token_share": mine["tokens"] / tokens if tokens else 0.0,
            "byte_share": mine["bytes"] / num_bytes if num_bytes else 0.0,
            "epochs": mine["tokens"] / manifest.num_tokens,
        }
    return consumed


def _model(run: RunConfig, vocab_size: int, targets: int) -> dict[str, Any]:
    rows = padded_vocab_size(vocab_size, run.model.vocab_multiple)
    parameters = run.model.num_parameters(rows)
    return {
        "shape": run.model.model_dump(mode="json"),
        "vocab_size": vocab_size,
        "padded_vocab_size": rows,
        "parameters": parameters,
        "parameters_without_embeddings": run.model.num_parameters(rows, embeddings=False),
        "target_tokens": targets,
        "tokens_per_parameter": targets / parameters,
    }


def _corpus(runs: list[RunConfig]) -> dict[str, dict[str, Any]]:
    """Source → split → counts, and the leakage between its splits."""
    corpus: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, source in run.sources.items():
            if name in corpus:
                continue
            splits = {split: load_manifest(source.path / split) for split in (source.train_split, source.validation_split) if split}
            train = splits[source.train_split]
            corpus[name] = {
                "modality": train.modality,
                "splits": {
                    split: {
                        "tokens": manifest.num_tokens,
                        "documents": manifest.num_documents,
                        "bytes": manifest.num_bytes,
                        "fingerprint": manifest.fingerprint,
                        "skipped": manifest.skipped,
                        "leakage": manifest.leakage,
                        "decontaminated_against": manifest.decontaminated_against,
                    }
                    for split, manifest in splits.items()
                },
                "licenses": train.licenses,
                "languages": train.languages,
            }
    return corpus


def _environments(plan: StudyPlan) -> list[dict[str, Any]]:
    """The distinct environments in which stages ran, each with the arms and stages that ran there."""
    found: dict[str, dict[str, Any]] = {}
    for arm in plan.trained:
        for stage, record in read_records(plan.arm_folder(arm)).items():
            key = json.dumps(record["environment"], sort_keys=True)
            found.setdefault(key, {"versions": record["environment"], "ran": []})["ran"].append(f"{arm.name}: {stage}")
    return list(found.values())


class _Baselines:
    """The unigram baseline for arms that may use different tokenizers: one per tokenizer, made when first asked for."""

    def __init__(self, plan: StudyPlan) -> None:
        self._domains = {name: Path(path) for name, path in plan.evaluation.get("bits_per_byte", {}).items()}
        self._max_tokens = plan.baseline_tokens
        self._made: dict[Path, UnigramBaseline] = {}

    def of(self, run: RunConfig, consumed: dict[str, int]) -> dict[str, float]:
        if not self._domains:
            return {}
        if run.tokenizer not in self._made:
            self._made[run.tokenizer] = UnigramBaseline(Tokenizer.load(run.tokenizer), self._domains, self._max_tokens)
        folders = {name: run.sources[name].path / run.sources[name].train_split for name, tokens in consumed.items() if tokens}
        cache = open_cache(run)
        lengths = [stage.sequence_length for stage in run.stages]
        return self._made[run.tokenizer].of(folders, lengths, consumed, lambda folder: open_split(folder, cache))
