"""Evaluations as a job array: models × what is measured, a unit each, then the parts of each model joined.

The units are a pure function of the words of the command, so each task of the array finds its own without a file of work.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.progress import say
from megatron_codemix.slurm.arrays import Step, Unit, is_done, own_units, read_record, run_units
from megatron_codemix.slurm.sending import Settings, Work, add_settings, report, require_folder, send, settings_of

_DESCRIPTION = """Evaluate on Slurm: a task of a job array for every model and everything that is measured, then the parts put together.

  codemix submit evaluate models/a models/b --output results --tasks reasoning code --data-dir benchmarks
  the same again: only what failed is submitted

results/a/results.json is the one that `codemix eval models/a --output results/a …` writes; of a single model it is results/results.json."""
_YAML = (".yaml", ".yml")
_PLAIN_OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"choices": ("auto", "cpu", "cuda")},
    "--dtype": {"choices": ("fp32", "bf16")},
    "--limit": {"metavar": "N"},
    "--batch-tokens": {"metavar": "N"},
    "--context": {"metavar": "N"},
    "--generate-with": {"choices": ("transformers", "vllm")},
    "--cache": {"metavar": "DIR"},
    "--no-cache": {"action": "store_true"},
    "--hub": {"action": "store_true"},
    "--unsafe-no-sandbox": {"action": "store_true"},
}
"""Options of `codemix eval` that are passed on as they are."""


def add_measured(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is measured, and how, as `codemix eval` takes them."""
    parser.add_argument(
        "--tasks", nargs="+", action="extend", default=[], metavar="NAME|SUITE|FILE.yaml", help="a unit each; may be repeated"
    )
    parser.add_argument(
        "--bits-per-byte", nargs="+", action="extend", default=[], metavar="DOMAIN=FILE", help="a unit each; may be repeated"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the named tasks' data is looked for")
    group = parser.add_argument_group("as of 'codemix eval'")
    for option, settings in _PLAIN_OPTIONS.items():
        group.add_argument(option, **settings)


def measured_words(arguments: argparse.Namespace) -> list[str]:
    """The words from which `add_measured`'s arguments were read, in one order."""
    words: list[str] = []
    for option in ("tasks", "bits_per_byte"):
        if values := getattr(arguments, option):
            words += [f"--{option.replace('_', '-')}", *values]
    if arguments.data_dir is not None:
        words += ["--data-dir", str(arguments.data_dir)]
    return words + _plain_words(arguments)


def _plain_words(arguments: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for option in _PLAIN_OPTIONS:
        value = getattr(arguments, option[2:].replace("-", "_"))
        if value is True:
            words.append(option)
        elif value:
            words += [option, value]
    return words


@dataclass(frozen=True)
class Evaluation:
    """What one command measures."""

    models: tuple[Path, ...]
    output: Path
    measured: tuple[tuple[str, str], ...]
    """(option, value): ("--tasks", "reasoning"), in the order in which one `codemix eval` reports them."""
    options: tuple[str, ...]
    """More words of every `codemix eval`."""
    data_dir: Path | None

    @property
    def folder(self) -> Path:
        """Records, scripts, logs and parts; the output itself is what `codemix eval` alone would have made."""
        return self.output.with_name(f"{self.output.name}.slurm")

    @property
    def labels(self) -> list[str]:
        """A name of its own for each model."""
        return _unique(re.sub(r"[^A-Za-z0-9._-]+", "-", model.resolve().name) or "model" for model in self.models)

    def output_of(self, label: str) -> Path:
        """Where the results of a model go: one model's are the output itself."""
        return self.output if len(self.models) == 1 else self.output / label

    def units_of(self, label: str, model: Path) -> list[Unit]:
        """What is measured on one model."""
        names = _unique(_label(option, value) for option, value in self.measured)
        return [self._unit(f"{label}.{name}", model, option, value) for name, (option, value) in zip(names, self.measured)]

    def _unit(self, name: str, model: Path, option: str, value: str) -> Unit:
        part = self.folder / "parts" / name
        data_dir = ["--data-dir", str(self.data_dir)] if self.data_dir is not None and option == "--tasks" else []
        words = ("eval", str(model), "--output", str(part), option, value, *data_dir, *self.options)
        reads = [model, Path(value.partition("=")[2] if option == "--bits-per-byte" else value), *([self.data_dir] if data_dir else [])]
        return Unit(name, words, inputs=tuple(path for path in reads if path is not None), product=part / "results.json")

    @property
    def units(self) -> list[Unit]:
        """All of them: model by model."""
        return [unit for label, model in zip(self.labels, self.models) for unit in self.units_of(label, model)]

    @property
    def joins(self) -> list[Unit]:
        """A unit for each model that puts its parts together."""
        found = []
        for label, model in zip(self.labels, self.models):
            parts = [unit.product.parent for unit in self.units_of(label, model) if unit.product is not None]
            output = self.output_of(label)
            words = ("eval", "join", *map(str, parts), "--output", str(output))
            found.append(Unit(f"{label}.join", words, inputs=tuple(parts), product=output / "results.json"))
        return found

    def steps(self, words: Sequence[str]) -> list[Step]:
        """The jobs; words: of this command, for the batch script."""
        return [
            Step("evaluate", tuple(self.units), tuple(words)),
            Step("join", tuple(self.joins), ("--join", *words), after="any", light=True),
        ]


def _label(option: str, value: str) -> str:
    if option == "--bits-per-byte":
        return f"bits-per-byte.{value.partition('=')[0]}"
    name = Path(value).stem if value.endswith(_YAML) else value
    return re.sub(r"[^A-Za-z0-9._-]+", ".", name)


def _unique(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number = 1
        while (shown := name if number == 1 else f"{name}-{number}") in found:
            number += 1
        found.append(shown)
    return found


def evaluation_of(arguments: argparse.Namespace) -> Evaluation:
    """What the arguments ask for: each thing once, in the order of `codemix eval`: domains, files of tasks, names."""
    files = [name for name in arguments.tasks if name.endswith(_YAML)]
    names = [name for name in arguments.tasks if not name.endswith(_YAML)]
    measured = [("--bits-per-byte", domain) for domain in arguments.bits_per_byte]
    measured += [("--tasks", name) for name in (*files, *names)]
    models = tuple(dict.fromkeys(arguments.models))
    return Evaluation(models, arguments.output, tuple(dict.fromkeys(measured)), tuple(_plain_words(arguments)), arguments.data_dir)


def check(evaluation: Evaluation, models_exist: bool = True) -> None:
    """Raises UserError with every mistake that can be seen without loading a model; models_exist: whether they must be there yet."""
    problems = [] if evaluation.measured else ["nothing to measure; give --tasks NAME ('codemix eval list') or --bits-per-byte DOMAIN=FILE"]
    for model in evaluation.models if models_exist else ():
        if not (model / "config.json").is_file():
            problems.append(f"{model}: holds no config.json, so it is no Hugging Face model directory; 'codemix convert to-hf' makes one")
    catalogue = importlib.import_module("eval.catalogue")  # by name: the trainer does not import `eval`
    known = [*catalogue.CATALOGUE, *catalogue.SUITES, "bigbench"]
    for option, value in evaluation.measured:
        if option == "--bits-per-byte":
            domain, equals, file = value.partition("=")
            if not (domain and equals):
                problems.append(f"--bits-per-byte {value}: write DOMAIN=FILE")
            elif not Path(file).is_file():
                problems.append(f"--bits-per-byte {value}: {file}: no such file; give held-out documents (.jsonl, .jsonl.gz, .jsonl.zst)")
        elif value.endswith(_YAML):
            if not Path(value).is_file():
                problems.append(f"--tasks {value}: no such file of tasks; see docs/evaluation.md")
        elif value not in known and not value.startswith(("bigbench:", "lm_eval:")):
            near = difflib.get_close_matches(value, known, n=1)
            problems.append(
                f"--tasks {value}: neither a task nor a suite; "
                + (f"did you mean '{near[0]}'?" if near else "'codemix eval list' shows them")
            )
    if evaluation.data_dir is not None and not evaluation.data_dir.is_dir():
        problems.append(f"--data-dir {evaluation.data_dir}: no such folder; give the one that holds the tasks' data")
    if problems:
        raise UserError(*problems)


def run(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """What evaluate.sbatch does in one task: HF_DIR… --output DIR …, or with --join the parts of a model put together."""
    parser = ArgumentParser(prog="evaluate.sbatch")
    parser.add_argument("models", type=Path, nargs="+", metavar="HF_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--processes", metavar="N")
    add_measured(parser)
    arguments = parser.parse_intermixed_args(list(argv))
    evaluation = evaluation_of(arguments)
    check(evaluation)
    extra = ["--processes", arguments.processes] if arguments.processes else []
    if arguments.join:
        return _join(evaluation, environment)
    code = run_units(evaluation.folder, own_units(evaluation.units, environment), extra)
    # without an array this one job is all there is
    return code if "SLURM_ARRAY_TASK_ID" in environment else _join(evaluation, environment)


def _join(evaluation: Evaluation, environment: Mapping[str, str]) -> int:
    """Join those models of this task of which everything is measured; names what is missing of the others."""
    code = 0
    pairs = list(zip(evaluation.labels, evaluation.models))
    for unit in own_units(evaluation.joins, environment):
        label, model = pairs[evaluation.joins.index(unit)]
        missing = [part for part in evaluation.units_of(label, model) if not is_done(evaluation.folder, part)]
        for part in missing:
            record = read_record(evaluation.folder, part)
            why = f"failed with exit code {record['returncode']}" if record else "was not finished"
            say(f"{part.name}: {why}; the same command submits it again alone")
        code = (1 if missing else run_units(evaluation.folder, [unit])) or code
    return code


def main(argv: Sequence[str]) -> int:
    """`codemix submit evaluate`; returns the exit code. Raises UserError."""
    parser = ArgumentParser(prog="codemix submit evaluate", description=_DESCRIPTION)
    parser.add_argument("models", type=Path, nargs="+", metavar="HF_DIR", help="Hugging Face directories")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="receives the results, a folder for each of several models"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of a task (default: 1 where the site's nodes have some)")
    add_measured(parser)
    add_settings(parser)
    arguments = parser.parse_intermixed_args(list(argv))
    settings = settings_of(arguments, parser)
    evaluation = evaluation_of(arguments)
    check(evaluation)
    words = [*map(str, evaluation.models), "--output", str(evaluation.output), *measured_words(arguments)]
    work = work_of(evaluation, words, settings, arguments.gpus)
    require_folder(work.folder)
    sent = send(work, settings)
    report(work, sent, ", ".join(str(unit.product) for unit in evaluation.joins))
    return 0


def work_of(evaluation: Evaluation, words: Sequence[str], settings: Settings, gpus: int | None) -> Work:
    """The jobs of an evaluation; words: for the batch script."""
    each = min(settings.site.gpus_per_node, 1) if gpus is None else gpus
    return Work(
        "evaluate", f"eval-{evaluation.output.name}", "evaluate.sbatch", evaluation.folder, tuple(evaluation.steps(words)), gpus=each
    )
