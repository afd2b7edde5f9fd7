"""`codemix prep run`: a prep file's sources through all stages: clean, decide, tokenizer, shards, merge.

codemix prep run PREP.yaml                               # everything that is missing
codemix prep run PREP.yaml --stage shards                # one stage; those before it must be done
codemix prep run PREP.yaml --stage shards --task 3 --tasks 8   # the chunks k with k mod 8 = 3, in a job array

Stages clean and shards work chunk by chunk and can be shared out among tasks; decide, tokenizer and merge run once. A stage
alone says what it did. The same command goes on where an interrupted one stopped.
launch_scripts/prep_array.sh submits all of it to Slurm.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from data_prep.run import Run, Share, open_run
from data_prep.stages import PER_CHUNK, STAGES, Stage
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.errors import UserError


def main(argv: Sequence[str]) -> int:
    """`codemix prep run PREP.yaml [a.b=c …] [--stage S] [--task i --tasks n] [--force]`."""
    parser = ArgumentParser(prog="codemix prep run", description=__doc__)
    parser.add_argument("config", type=Path, help="prep file, see docs/data-prep.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the prep file to set")
    parser.add_argument("--stage", choices=get_args(Stage), help="only this one")
    parser.add_argument("--task", type=int, metavar="I", help="with --tasks: which part of the chunks, from 0")
    parser.add_argument("--tasks", type=int, metavar="N", help="into how many parts the chunks are divided")
    parser.add_argument("--force", action="store_true", help="make anew what is there already")
    arguments = parser.parse_intermixed_args(argv)
    share = _share(arguments.task, arguments.tasks, arguments.stage, arguments.force)
    config = load_config(arguments.config, PrepConfig, arguments.overrides)
    run_stages(config, [arguments.stage] if arguments.stage else STAGES, share=share, force=arguments.force)
    return 0


def _share(task: int | None, tasks: int | None, stage: str | None, force: bool) -> Share:
    if task is None and tasks is None:
        return Share()
    if task is None or tasks is None:
        raise UserError("--task and --tasks belong together: give both, or neither")
    if not 0 <= task < tasks:
        raise UserError(f"--task {task} --tasks {tasks}: tasks are numbered 0 … {tasks - 1}")
    if stage not in PER_CHUNK:
        raise UserError(f"--task: only the stages {' and '.join(sorted(PER_CHUNK))} are divided; give --stage, and run the others once")
    if force:
        raise UserError(
            "--force: a task would remove what other tasks make; run 'codemix prep run --force' without --task, or remove the output"
        )
    return Share(task, tasks)


def run_stages(config: PrepConfig, stages: Sequence[Stage], *, share: Share = Share(), force: bool = False) -> None:  # noqa: B008 - a tuple
    """Run some stages in their order. Raises UserError for bad input, and for what is there but was made otherwise (unless `force`)."""
    with open_run(config, share) as run:
        wanted = run.begin(stages, force=force)
        for stage in stages:
            told = _STAGES[stage](run, force) if stage in wanted else "nothing to do: all splits are finished"
            if stages == [stage] and isinstance(told, str):
                print(f"{config.output}: {stage}: {told}", flush=True)


def _tokenizer(run: Run, force: bool) -> None:
    # brings the exporter with all of transformers
    importlib.import_module("data_prep.tokenizer_command").tokenizer_stage(run, force=force)


_STAGES: dict[Stage, Callable[[Run, bool], object]] = {
    "clean": lambda run, force: run.clean(),
    "decide": lambda run, force: run.decide(),
    "tokenizer": _tokenizer,
    "shards": lambda run, force: run.shards(),
    "merge": lambda run, force: run.merge(),
}
