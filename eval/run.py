"""`codemix eval HF_DIR --output DIR`: measure a Hugging Face directory, item by item (docs/evaluation.md)."""

from __future__ import annotations

import platform
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from eval.catalogue import listing
from eval.command import VERBS
from eval.directory import ModelDirectory, open_directory
from eval.engine import Engine, Settings, open_engine
from eval.outcome import Outcome
from eval.results import ResultsFolder, fingerprint, going_on
from eval.suites import is_name, resolve
from eval.tasks.kinds import KINDS, kind_module
from eval.tasks.options import Task, collect_tasks
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_file, sha256_json
from megatron_codemix.progress import say


def _parser() -> ArgumentParser:
    others = "\n".join(f"  codemix eval {verb:<9} {line}" for verb, (_, line) in VERBS.items())
    parser = ArgumentParser(
        prog="codemix eval",
        description="Evaluate any Hugging Face causal language model, item by item.",
        epilog=f"other verbs:\n{others}",
    )
    parser.add_argument("model", type=Path, metavar="HF_DIR", help="folder with config.json, *.safetensors and a tokenizer")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="receives results.json and items/TASK.jsonl")
    parser.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME|SUITE|FILE.yaml",
        help="tasks and suites of 'codemix eval list', and files of tasks (docs/evaluation.md); may be repeated",
    )
    parser.add_argument(
        "--bits-per-byte",
        nargs="+",
        action="extend",
        default=[],
        metavar="DOMAIN=FILE",
        help="held-out documents (.jsonl, .jsonl.gz, .jsonl.zst with a 'text' field); DOMAIN names the result; may be repeated",
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the named tasks' data is looked for, by name, in all its folders"
    )
    parser.add_argument(
        "--hub", action="store_true", help="fetch from the Hugging Face hub what --data-dir does not hold (uses the network)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="weights and activations (default: fp32)")
    parser.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="processes that share the work (default: a CPU's cores; 1 on a GPU); changes no result",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="first N rows of every task, for a trial")
    parser.add_argument("--batch-tokens", type=_count, metavar="N", help="tokens per forward pass; changes speed and memory, not results")
    parser.add_argument("--context", type=_count, metavar="N", help="inputs at once (default: what config.json allows)")
    parser.add_argument("--generate-with", choices=("transformers", "vllm"), default="transformers", help="what writes completions")
    caching = parser.add_mutually_exclusive_group()
    caching.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep single answers there, for several outputs (default: OUTPUT/.cache)"
    )
    caching.add_argument("--no-cache", action="store_true", help="keep no single answers")
    parser.add_argument("--unsafe-no-sandbox", action="store_true", help="run code that the model wrote without a sandbox: never do this")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")  # argparse names the option
    return int(text)


def list_tasks(argv: Sequence[str]) -> int:
    """`codemix eval list`."""
    ArgumentParser(prog="codemix eval list", description="The standard tasks and suites.").parse_args(list(argv))
    print(listing())
    return 0


def main(argv: Sequence[str]) -> int:
    """Measure a model; returns the exit code."""
    arguments = _parser().parse_args(list(argv))
    tasks = gather(arguments.bits_per_byte, arguments.tasks, arguments.data_dir, arguments.hub)
    common: dict[str, Any] = {"unsafe_no_sandbox": True} if arguments.unsafe_no_sandbox else {}
    for name, task in tasks.items():
        update = {key: value for key, value in common.items() if key in type(task).model_fields}
        if arguments.limit is not None:
            update["limit"] = min(arguments.limit, task.limit or arguments.limit)
        tasks[name] = task.model_copy(update=update)
    device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with going_on():
        results = evaluate(
            arguments.model,
            arguments.output,
            tasks,
            device=device,
            dtype=arguments.dtype,
            batch_tokens=arguments.batch_tokens,
            context=arguments.context,
            # each computes with one thread on a CPU: together as many as torch would take, OMP_NUM_THREADS obeyed
            processes=arguments.processes or (torch.get_num_threads() if device == "cpu" else 1),
            cache=None if arguments.no_cache else arguments.cache or arguments.output / ".cache",
            generate_with=arguments.generate_with,
        )
    for name, entry in results["tasks"].items():
        headline = KINDS[entry["kind"]].headline
        shown = "  ".join(f"{key} {_shown(entry['metrics'][key])}" for key in headline if key in entry["metrics"])
        print(f"{name}  {shown}")
    print(arguments.output / "results.json")
    return 0


def _shown(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def gather(domains: Sequence[str], names: Sequence[str], data_dir: Path | None, hub: bool) -> dict[str, Task]:
    """All that one command measures: domains, then files of tasks, then names. Raises one UserError with every mistake of a kind."""
    is_file = {name: name.endswith((".yaml", ".yml")) or (not is_name(name) and Path(name).is_file()) for name in names}
    files, named = [Path(name) for name in names if is_file[name]], [name for name in names if not is_file[name]]
    tasks: dict[str, Task] = {}
    for found in [collect_tasks(domains, None)] if domains else []:
        tasks |= found
    for file in files:
        tasks = _joined(tasks, collect_tasks([], file), str(file))
    if named:
        tasks = _joined(tasks, resolve(named, data_dir, hub), "--tasks")
    if not tasks:
        raise UserError(
            "nothing to measure; give --tasks NAME ('codemix eval list'), --tasks FILE.yaml or --bits-per-byte DOMAIN=FILE.jsonl"
        )
    return tasks


def _joined(tasks: dict[str, Task], more: dict[str, Task], where: str) -> dict[str, Task]:
    twice = sorted(set(tasks) & set(more))
    if twice:
        raise UserError(f"{where}: tasks.{twice[0]}: another task of this command has this name too; rename one of them")
    return tasks | more


def evaluate(
    model_path: Path,
    output: Path,
    tasks: dict[str, Task],
    *,
    device: str = "cpu",
    dtype: str = "fp32",
    batch_tokens: int | None = None,
    context: int | None = None,
    processes: int = 1,
    cache: Path | None = None,
    generate_with: str = "transformers",
) -> dict[str, Any]:
    """Measure every task that is not already done in `output`, and write results.json; returns its content.

    Raises UserError for mistakes in the model directory, the data (all of it is read before anything is measured) and the settings.
    """
    folder = ResultsFolder(output)
    read_all(tasks)
    directory = open_directory(model_path)
    settings = Settings(device, dtype, batch_tokens, context, processes, cache, generate_with)
    with folder.held():
        return _measure(folder, directory, tasks, settings)


def _measure(folder: ResultsFolder, directory: ModelDirectory, tasks: dict[str, Task], settings: Settings) -> dict[str, Any]:
    """Measure what the folder does not hold already, and write results.json; returns its content."""
    # What decides the numbers: batch_tokens and processes do not (tested), the versions of torch and transformers are recorded.
    deciding = {key: getattr(settings, key) for key in ("device", "dtype", "context")}
    deciding["codemix"] = directory.codemix is not None  # it decides the start token
    if settings.generate_with != "transformers":
        deciding["generate_with"] = settings.generate_with
    described = {name: describe(task) for name, task in tasks.items()}
    prints = {name: _fingerprint(directory.identity, deciding, task, described[name]) for name, task in tasks.items()}
    done = {name: entry for name in tasks if (entry := folder.finished(name, prints[name])) is not None}
    for name in done:
        say(f"{name}: {folder.folder} has it already for this model, data and settings; kept", sys.stderr)
    if folder.results is not None and list(done.items()) == list(folder.results["tasks"].items()) and len(done) == len(tasks):
        # whole already; the model's place and its codemix.json, of which no number depends, may be others than they were
        return folder.write(directory.identity, folder.results["settings"], done, whole=True)
    folder.tell_other_model(directory.identity)
    with open_engine(directory, settings) as engine:
        check_all(engine, tasks)
        recorded = _recorded(engine, tasks)
        for name, task in tasks.items():
            if name not in done:
                outcome = kind_module(task.kind).measure(engine, task, name)
                entry = folder.write_task(name, task.kind, outcome, prints[name], _versions(task.kind))
                done[name] = entry | described[name] | {"data": [_with_rows(one, outcome) for one in described[name]["data"]]}
                folder.write(directory.identity, recorded, done, whole=False)
    for name in folder.drop_others(set(tasks)):
        say(f"{name}: not asked for this time; its earlier results in {folder.folder} are removed", sys.stderr)
    return folder.write(directory.identity, recorded, {name: done[name] for name in tasks}, whole=True)


def read_all(tasks: dict[str, Task]) -> None:
    """Read and check every task's data. Raises one UserError with the bad rows of each task."""
    problems: list[str] = []
    for task in tasks.values():
        try:
            kind_module(task.kind).read(task)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))


def check_all(engine: Engine, tasks: dict[str, Task]) -> None:
    """What can be told only with the model at hand, before anything is measured. Raises UserError."""
    for name, task in tasks.items():
        module = kind_module(task.kind)
        if hasattr(module, "check"):
            module.check(engine, task, name)
        elif isinstance(new_tokens := getattr(task, "max_new_tokens", None), int):
            engine.check_room(new_tokens, name)


def describe(task: Task) -> dict[str, Any]:
    """`definition`, `data` and `options` of a task's entry in results.json."""
    module = kind_module(task.kind)
    version = int(getattr(module, "VERSION", 1))
    default = {"name": task.kind, "version": version, "source": "codemix"}
    data = module.data_record(task) if hasattr(module, "data_record") else [_file_record(file) for file in task.files]
    options = {key: value for key, value in task.model_dump(mode="json").items() if key != "kind"}
    return {
        "definition": module.definition(task) if hasattr(module, "definition") else default,
        "kind_version": version,
        "data": data,
        "options": options,
        "seeds": {key: value for key, value in options.items() if key == "seed"},
    }


def _file_record(file: Path) -> dict[str, Any]:
    return {"file": file.name, "sha256": sha256_file(file), "rows": None, "schema": "as the options say"}


def _with_rows(record: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    return record if record["rows"] is not None else record | {"rows": len(outcome.items)}


def _fingerprint(model: dict[str, Any], deciding: dict[str, Any], task: Task, described: dict[str, Any]) -> str:
    """Contents, not places: paths of the task are left out, their files' hashes are in."""
    places = {key for key, value in task if isinstance(value, Path)}
    options = {key: value for key, value in task.model_dump(mode="json").items() if key not in places}
    options |= {"definition": described["definition"], "kind_version": described["kind_version"]}
    return fingerprint(model, deciding, options, sha256_json([{**one, "file": None} for one in described["data"]]))


def _recorded(engine: Engine, tasks: dict[str, Task]) -> dict[str, Any]:
    """The `settings` of results.json."""
    return {
        "device": engine.settings.device,
        "dtype": engine.settings.dtype,
        "batch_tokens": engine.batch_tokens,
        "context": engine.context,
        "start_id": engine.start_id,
        "end_id": engine.end_id,
        "generate_with": engine.settings.generate_with,
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
    }


def _versions(kind: str) -> dict[str, str]:
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    return found | ({"lm_eval": metadata.version("lm_eval")} if kind == "standard" else {})
