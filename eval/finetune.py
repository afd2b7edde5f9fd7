"""`codemix eval finetune HF_DIR --task … --data-dir … --output DIR`: fine-tune on several seeds, measure generalisation.

See docs/fine-tuning.md.

A plain Hugging Face loop on one device. Steps and learning rate are declared, the model of the last step is measured once; nothing
is chosen on the generalisation set, nor on any other.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from eval.directory import open_directory
from eval.engine import Settings
from eval.generalisation.benchmarks import BENCHMARKS, Benchmark, read_benchmark
from eval.generalisation.reading import Split
from eval.generalisation.runs import Measured, Plan, move_models, run_seed
from eval.generalisation.scoring import VERSION, summarise
from eval.generalisation.sequences import SEPARATOR
from eval.generalisation.training import Place, Recipe
from eval.outcome import Outcome
from eval.results import ResultsFolder, fingerprint, going_on
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import remove_folder, sha256_json, write_json
from megatron_codemix.progress import say

KIND = "generalisation"
LEAST_SEEDS = 3
WHAT_SEEDS_SAY = (
    "Intervals are over seeds of fine-tuning: they say how well this one checkpoint is measured. "
    "Whether a mixture makes models better is a question of many pretrained models (seeds of pretraining): see 'codemix study'."
)


@dataclass(frozen=True)
class Options:
    """What the user declares; all of it the same for every arm that is to be compared."""

    task: str
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 10_000
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    batch_size: int = 32
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int | None = None
    dtype: str = "fp32"
    separator: str = SEPARATOR
    make_training_rows: int | None = None
    """Rows drawn from the published grammar where there is no training file."""
    limit: int | None = None
    """Rows of every part and of dev that are measured, for a trial."""
    trial: bool = False

    @property
    def recorded(self) -> dict[str, Any]:
        """`options` of an entry: all but the seeds, which stand for themselves."""
        return {name: value for name, value in vars(self).items() if name != "seeds"}

    @property
    def recipe(self) -> Recipe:
        """What the training loop takes."""
        return Recipe(self.steps, self.learning_rate, self.batch_size, self.warmup_steps, self.weight_decay, self.clip, self.dtype)


def _parser() -> ArgumentParser:
    default = Options("")
    parser = ArgumentParser(prog="codemix eval finetune", description="Fine-tune on several seeds and measure generalisation.")
    parser.add_argument("model", type=Path, metavar="HF_DIR", help="folder with config.json, *.safetensors and a tokenizer")
    parser.add_argument("--task", required=True, choices=tuple(BENCHMARKS), help="what to fine-tune on")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="the benchmark's folder, or one that holds it")
    parser.add_argument(
        "--make-training-rows",
        metavar="N",
        help="passivization, question_formation: draw them from the grammar in DIR, lacking a train file",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="receives results.json, items/ and finetune.json")
    parser.add_argument(
        "--seeds", nargs="+", default=["0", "1", "2"], metavar="N", help="seeds of fine-tuning, at least 3 (default: 0 1 2)"
    )
    recipe = parser.add_argument_group("recipe, declared, the same for all arms")
    recipe.add_argument("--steps", default=str(default.steps), metavar="N", help=f"default: {default.steps:,}")
    recipe.add_argument("--learning-rate", default=str(default.learning_rate), metavar="X", help=f"default: {default.learning_rate}")
    recipe.add_argument("--warmup-steps", default=str(default.warmup_steps), metavar="N", help=f"linear; default: {default.warmup_steps}")
    recipe.add_argument("--batch-size", default=str(default.batch_size), metavar="N", help=f"rows per step; default: {default.batch_size}")
    recipe.add_argument("--weight-decay", default=str(default.weight_decay), metavar="X", help=f"default: {default.weight_decay}")
    recipe.add_argument("--clip", default=str(default.clip), metavar="X", help=f"gradient norm, 0 for none; default: {default.clip}")
    recipe.add_argument("--max-length", metavar="N", help="training rows of more tokens are left out (default: the model's context)")
    recipe.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast over fp32 weights, and bf16 when writing")
    recipe.add_argument("--separator", default=SEPARATOR, metavar="TEXT", help=f"between input and output (default: '{SEPARATOR}')")
    place = parser.add_argument_group("where and how it runs")
    place.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    place.add_argument("--micro-batch-size", metavar="N", help="rows per forward pass (default: the whole batch)")
    place.add_argument("--batch-tokens", metavar="N", help="tokens per forward pass when writing")
    place.add_argument("--processes", metavar="N", help="processes that write (default: a CPU's cores; 1 on a GPU); changes no result")
    place.add_argument("--context", metavar="N", help="tokens at once (default: what config.json allows)")
    place.add_argument("--checkpoint-every", default="500", metavar="N", help="steps between states that a killed run goes on from")
    place.add_argument("--keep-models", action="store_true", help="keep the fine-tuned models in OUTPUT/models/seed-N")
    place.add_argument("--trial", action="store_true", help="not a result: allows fewer than 3 seeds, and --limit")
    place.add_argument("--limit", metavar="N", help="with --trial: the first N rows of every part, and of dev")
    return parser


def _whole(text: str | None, option: str, least: int = 1) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"{option}: '{text}' is not a whole number of at least {least}")
    return int(text)


def _number(text: str, option: str, positive: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise UserError(f"{option}: '{text}' is not a number {'above' if positive else 'of at least'} 0")
    return value


def main(argv: Sequence[str]) -> int:
    """Fine-tune, measure and print; returns the exit code."""
    given = _parser().parse_args(list(argv))
    options = Options(
        task=given.task,
        seeds=tuple(_whole(seed, "--seeds", 0) or 0 for seed in given.seeds),
        steps=_whole(given.steps, "--steps") or 0,
        learning_rate=_number(given.learning_rate, "--learning-rate", positive=True),
        warmup_steps=_whole(given.warmup_steps, "--warmup-steps", 0) or 0,
        batch_size=_whole(given.batch_size, "--batch-size") or 0,
        weight_decay=_number(given.weight_decay, "--weight-decay", positive=False),
        clip=_number(given.clip, "--clip", positive=False),
        max_length=_whole(given.max_length, "--max-length", 2),
        dtype=given.dtype,
        separator=given.separator,
        make_training_rows=_whole(given.make_training_rows, "--make-training-rows"),
        limit=_whole(given.limit, "--limit"),
        trial=given.trial,
    )
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with going_on():
        results = finetune(
            given.model,
            given.data_dir,
            given.output,
            options,
            device=device,
            micro_batch_size=_whole(given.micro_batch_size, "--micro-batch-size"),
            batch_tokens=_whole(given.batch_tokens, "--batch-tokens"),
            processes=_whole(given.processes, "--processes") or (torch.get_num_threads() if device == "cpu" else 1),
            context=_whole(given.context, "--context", 2),
            checkpoint_every=_whole(given.checkpoint_every, "--checkpoint-every") or 1,
            keep_models=given.keep_models,
        )
    print(*table(results), given.output / "results.json", sep="\n")
    return 0


def table(results: dict[str, Any]) -> list[str]:
    """What the command prints: a line per part, and what the intervals say."""
    lines = []
    for name, entry in results["tasks"].items():
        metrics = entry["metrics"]
        shown = [_shown(metrics, "exact_match", "exact match"), _shown(metrics, "well_formed", "well-formed")]
        shown.append(_shown(metrics, "exact_match_given_well_formed", "exact match given well-formed"))
        shown += [_shown(metrics, key, key.replace("_", " ")) for key in ("main_verb", "first_word")]
        trial = "; trial, no result" if entry["options"]["trial"] else ""
        lines.append(f"{name}  {'  '.join(filter(None, shown))}  ({metrics['rows']:,} rows, {metrics['seeds']} seeds{trial})")
    return [*lines, WHAT_SEEDS_SAY]


def _shown(metrics: dict[str, Any], key: str, label: str) -> str:
    if key not in metrics:
        return ""
    spread = f" ± {metrics[f'{key}_stderr']:.4f}" if f"{key}_stderr" in metrics else ""
    interval = f" [{metrics[f'{key}_low']:.4f}, {metrics[f'{key}_high']:.4f}]" if f"{key}_low" in metrics else " no interval" * bool(spread)
    return f"{label} {metrics[key]:.4f}{spread}{interval}"


def check(options: Options) -> None:
    """Raises UserError for options that make no result."""
    if len(set(options.seeds)) != len(options.seeds):
        raise UserError("--seeds: a seed stands there twice; give different ones")
    if len(options.seeds) < LEAST_SEEDS and not options.trial:
        raise UserError(f"--seeds: {len(options.seeds)} of at least {LEAST_SEEDS}; one fine-tuning says little; for a trial add --trial")
    if options.limit is not None and not options.trial:
        raise UserError("--limit: a part of the rows is not the benchmark; for a trial add --trial")


def finetune(
    model: Path,
    data_dir: Path,
    output: Path,
    options: Options,
    *,
    device: str = "cpu",
    micro_batch_size: int | None = None,
    batch_tokens: int | None = None,
    processes: int = 1,
    context: int | None = None,
    checkpoint_every: int = 500,
    keep_models: bool = False,
) -> dict[str, Any]:
    """Fine-tune and measure every seed that is not done, write results.json, and return its content. Raises UserError, JobError."""
    check(options)
    folder = ResultsFolder(output)
    benchmark = _limited(read_benchmark(options.task, data_dir, options.make_training_rows), options.limit)
    plan = Plan(
        directory=open_directory(model),
        benchmark=benchmark,
        recipe=options.recipe,
        place=Place(device, min(micro_batch_size or options.batch_size, options.batch_size), checkpoint_every),
        separator=options.separator,
        max_length=options.max_length,
        writing=Settings(device, options.dtype, batch_tokens, context, processes),
        options=options.recorded | {"version": VERSION},
        limit=options.limit,
        work=output / ".work",
        models=output / "models" if keep_models else None,
    )
    with folder.held():
        return _run(folder, plan, options.seeds)


def _run(folder: ResultsFolder, plan: Plan, seeds: Sequence[int]) -> dict[str, Any]:
    """Every seed that is not done; returns the content of results.json."""
    parts = plan.benchmark.parts
    prints = {part: _fingerprint(plan, part, seeds) for part in parts}
    done = {part: entry for part in parts if (entry := folder.finished(part, prints[part])) is not None}
    models_there = plan.models is None or all((plan.models / f"seed-{seed}").is_dir() for seed in seeds)
    if folder.results is not None and models_there and list(done) == list(parts) == list(folder.results["tasks"]):
        remove_folder(plan.work)
        say(f"{folder.folder} has this already, for the same model, data and recipe; kept", sys.stderr)
        return folder.results
    folder.tell_other_model(plan.directory.identity)
    measured = {seed: run_seed(plan, seed) for seed in seeds}
    outcomes = {part: summarise({seed: one.items[part] for seed, one in measured.items()}, plan.benchmark.errors) for part in parts}
    return _write(folder, plan, measured, outcomes, prints)


def _limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    return replace(benchmark, parts={part: (split, examples[:limit]) for part, (split, examples) in benchmark.parts.items()})


def _records(plan: Plan, part: str) -> list[dict[str, Any]]:
    """`data` of an entry: what was trained on, and what was measured."""
    splits: list[Split] = [plan.benchmark.splits["train"], plan.benchmark.splits[plan.benchmark.parts[part][0]]]
    return [split.record for split in splits]


def _fingerprint(plan: Plan, part: str, seeds: Sequence[int]) -> str:
    deciding = {
        "device": plan.place.device,
        "micro_batch_size": plan.place.micro_batch_size,
        "context": plan.writing.context,
        "codemix": plan.directory.codemix is not None,
    }
    options = plan.options | {"kind": KIND, "part": part, "seeds": list(seeds)}
    return fingerprint(plan.directory.identity, deciding, options, sha256_json([one["sha256"] for one in _records(plan, part)]))


def _write(
    folder: ResultsFolder, plan: Plan, measured: dict[int, Measured], outcomes: dict[str, Outcome], prints: dict[str, str]
) -> dict[str, Any]:
    """results.json, its items, and finetune.json; what interrupted runs need goes."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    tasks = {}
    for part, outcome in outcomes.items():
        tasks[part] = folder.write_task(part, KIND, outcome, prints[part], versions) | {
            "definition": {"name": part, "version": VERSION, "source": plan.benchmark.source},
            "kind_version": VERSION,
            "data": _records(plan, part),
            "options": plan.options,
            "seeds": {"finetune": list(measured)},
        }
    first = next(iter(measured.values()))
    training = {str(seed): {"losses": one.losses, "dev_loss": one.dev_loss} for seed, one in measured.items()}
    record = {"format_version": 1, "task": plan.benchmark.name, "note": WHAT_SEEDS_SAY, "options": plan.options, **first.notes}
    write_json(folder.folder / "finetune.json", record | {"seeds": training})
    settings = {"device": plan.place.device, "dtype": plan.recipe.dtype, **first.engine, "generate_with": "transformers", "tasks": {}}
    settings |= {"micro_batch_size": plan.place.micro_batch_size, "finetune": first.notes}
    for name in folder.drop_others(set(tasks)):
        say(f"{name}: not of this command; its earlier results in {folder.folder} are removed", sys.stderr)
    move_models(plan, list(measured))
    results = folder.write(plan.directory.identity, settings, tasks, whole=True)
    remove_folder(plan.work)
    return results
