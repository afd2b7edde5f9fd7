"""A prep file through all its stages as jobs: those that work chunk by chunk are job arrays, each waits for the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import sha256_json
from megatron_codemix.slurm.arrays import Step, Unit, own_units, run_units
from megatron_codemix.slurm.sending import Work, add_settings, report, require_folder, send, settings_of

_DESCRIPTION = """Prepare data on Slurm: clean (array) → decide → tokenizer → shards (array) → merge, each behind the one before.

  codemix submit prep PREP.yaml --tasks 64 --cpus 8
  codemix submit prep PREP.yaml --tasks 64 --cpus 8     again: only what failed, and what follows from it

The shards are, byte for byte, those of `codemix prep run PREP.yaml`."""
STAGES = ("clean", "decide", "tokenizer", "shards", "merge")
PER_CHUNK = frozenset(("clean", "shards"))
"""Stages that are shared out among tasks (data_prep/stages.py; a test holds both together)."""


def folder_of(config: PrepConfig) -> Path:
    """Records, scripts and logs; beside the output, which is what `codemix prep run` alone would have made."""
    return config.output.with_name(f"{config.output.name}.slurm")


def steps_of(path: Path, overrides: Sequence[str], config: PrepConfig, tasks: int) -> list[Step]:
    """The jobs of a prep file; tasks: into how many the stages that work chunk by chunk are divided."""
    # how many processes share the work decides no byte
    settings = sha256_json(config.model_dump(mode="json", exclude={"workers"}))
    return [Step(stage, tuple(_units(stage, path, overrides, settings, tasks)), (str(path), stage, *overrides)) for stage in STAGES]


def _units(stage: str, path: Path, overrides: Sequence[str], settings: str, tasks: int) -> list[Unit]:
    words = ("prep", "run", str(path), *overrides, "--stage", stage)
    if stage not in PER_CHUNK:
        return [Unit(stage, words, settings)]
    return [
        Unit(f"{stage}-{task:04d}-of-{tasks:04d}", (*words, "--task", str(task), "--tasks", str(tasks)), settings) for task in range(tasks)
    ]


def run(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """What prep_array.sbatch does in one task: PREP.yaml STAGE [a.b=c …] --tasks N --workers N."""
    parser = ArgumentParser(prog="prep_array.sbatch")
    parser.add_argument("config", type=Path, metavar="PREP.yaml")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    parser.add_argument("--tasks", type=int, required=True, metavar="N")
    parser.add_argument("--workers", type=int, required=True, metavar="N")
    arguments = parser.parse_intermixed_args(list(argv))
    if arguments.tasks < 1:
        raise UserError(f"--tasks {arguments.tasks}: give 1 or more")
    config = load_config(arguments.config, PrepConfig, arguments.overrides)
    (step,) = (one for one in steps_of(arguments.config, arguments.overrides, config, arguments.tasks) if one.name == arguments.stage)
    mine = own_units(step.units, environment) if step.name in PER_CHUNK else step.units
    return run_units(folder_of(config), mine, [f"workers={arguments.workers}"])


def main(argv: Sequence[str]) -> int:
    """`codemix submit prep`; returns the exit code. Raises UserError."""
    parser = ArgumentParser(prog="codemix submit prep", description=_DESCRIPTION)
    parser.add_argument("config", type=Path, metavar="PREP.yaml", help="prep file; see docs/data-prep.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the prep file to set")
    parser.add_argument("--tasks", type=int, required=True, metavar="N", help="into how many the stages clean and shards are divided")
    add_settings(parser)
    arguments = parser.parse_intermixed_args(list(argv))
    if arguments.tasks < 1:
        parser.error(f"--tasks {arguments.tasks}: give 1 or more")
    settings = settings_of(arguments, parser)
    config = load_config(arguments.config, PrepConfig, arguments.overrides)
    work = Work(
        "prep",
        f"prep-{arguments.config.stem}",
        "prep_array.sbatch",
        folder_of(config),
        tuple(steps_of(arguments.config, arguments.overrides, config, arguments.tasks)),
        {"PREP_TASKS": arguments.tasks},
    )
    require_folder(work.folder)
    sent = send(work, settings)
    report(work, sent, str(config.output))
    return 0
