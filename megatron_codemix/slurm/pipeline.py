"""`codemix submit chain`: train → convert → evaluate, each job behind the one before; none waits for what can no longer come true.

Slurm keeps a dependency through requeues of the job that is waited for: what follows begins when the run is finished, however
many starts that takes, and is cancelled where it is given up.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.slurm import conversion, evaluations
from megatron_codemix.slurm.chain import FINISHED_NAME, FOLDER
from megatron_codemix.slurm.sending import Sent, Settings, Work, add_settings, placeholder, send, settings_of
from megatron_codemix.slurm.squeue import has_slurm, queue
from megatron_codemix.slurm.submit import Request, following, submission_name, submit, training_job

_DESCRIPTION = """Train on Slurm, convert what comes out, evaluate it: from one command to RUN/eval/results.json.

  codemix submit chain RUN.yaml --nodes 4 --time 24:00:00 --tasks reasoning code --data-dir benchmarks
  the same again: what is finished, or in the queue, is not submitted again

--time is that of one start of training; --task-time, --cpus, --memory and --gpus are those of the conversion and of each evaluation."""

TRAINED = ("model", "precision", "document_masking", "seeds", "width_transfer", "stages", "optimizer")
"""Sections of a run file that decide what is trained (train/resume.py and changes.py; a test holds them together)."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="codemix submit chain", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes that train (default 1)")
    parser.add_argument("--spare", type=int, default=0, metavar="N", help="more nodes, to stand in for those that fail preflight")
    parser.add_argument("--accept-changes", action="store_true", help="as of codemix train")
    parser.add_argument("--hf", type=Path, metavar="DIR", help="where the converted model goes (default: RUN/hf)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the results go (default: RUN/eval)")
    parser.add_argument("--task-time", metavar="H:M:S", help="time limit of the conversion and of each evaluation (default: the site's)")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of an evaluation task (default: 1 where the site's nodes have some)")
    conversion.add_conversion(parser)
    evaluations.add_measured(parser)
    add_settings(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises UserError before anything is submitted."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(list(argv))
    for name, least in (("nodes", 1), ("spare", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} {getattr(arguments, name)}: give {least} or more")
    settings = settings_of(arguments, parser)
    # the tasks' own time limit; --time is training's
    tasks = replace(settings_of(argparse.Namespace(**{**vars(arguments), "time": arguments.task_time}), parser), again=settings.again)
    request = Request(
        run_file=arguments.run,
        overrides=tuple(arguments.overrides),
        nodes=arguments.nodes,
        spare=arguments.spare,
        time=settings.time,
        accept_changes=arguments.accept_changes,
        sbatch=settings.sbatch,
    )
    config, _ = training_job(request, settings.site)  # every mistake, before anything is submitted
    convert, evaluate = _behind(arguments, config, tasks)
    trained, new = _train(request, settings, config)
    if evaluate is None:
        print("nothing to evaluate was asked for (--tasks, --bits-per-byte)")
    converted = send(convert, tasks, trained, fresh=new)
    _print(converted)
    if evaluate is not None:
        evaluated = send(evaluate, tasks, converted.last, fresh=bool(converted.jobs))
        _print(evaluated)
    if not settings.dry_run:
        print(f"  state    codemix jobs {config.output}")
    return 0


def _behind(arguments: argparse.Namespace, config: RunConfig, settings: Settings) -> tuple[Work, Work | None]:
    """Conversion, and evaluation where something is to be measured. Raises UserError."""
    run = config.output
    out = arguments.hf or run / "hf"
    converting = Work("convert", config.name, "convert.sbatch", run / FOLDER, (conversion.step_of(run, out, arguments),), gpus=0)
    if not (arguments.tasks or arguments.bits_per_byte):
        return converting, None
    asked = argparse.Namespace(**{**vars(arguments), "models": [out], "output": arguments.results or run / "eval"})
    evaluation = evaluations.evaluation_of(asked)
    evaluations.check(evaluation, models_exist=False)
    words = [str(out), "--output", str(evaluation.output), *evaluations.measured_words(arguments)]
    return converting, replace(evaluations.work_of(evaluation, words, settings, arguments.gpus), name=config.name)


def _train(request: Request, settings: Settings, config: RunConfig) -> tuple[str | None, bool]:
    """(job to wait for, or None where the run is finished; whether it is a new one). Prints what was done."""
    run = config.output.absolute()
    if settings.dry_run:
        print(training_job(request, settings.site)[1].script)
        return placeholder("train"), True
    if _is_finished(config, run) and not settings.again:
        print(f"{config.output}: the run is finished")
        return None, False
    waiting = [job.id for job in (queue() if has_slurm() else []) if job.is_open and job.work == ("train", str(run))]
    if waiting:
        print(f"job {waiting[0]}: trains into {config.output} already, or waits to")
        return waiting[0], False
    place = submission_name()
    submitted = submit(training_job(request, settings.site, place)[1], place)
    print(f"job {submitted.job}: train")
    print("\n".join(f"  {line}" for line in following(submitted, config.output) if line.startswith("log ")))
    return submitted.job, True


def _is_finished(config: RunConfig, run: Path) -> bool:
    """Whether nothing of the run is left to train: its marker is there, and it is not to be longer, or another, than when it came."""
    if not (run / FINISHED_NAME).is_file():
        return False
    try:
        before = load_config(run / "config.yaml", RunConfig, [])
    except UserError:  # the trainer's to tell
        return True
    return all(getattr(config, section) == getattr(before, section) for section in TRAINED)


def _print(sent: Sent) -> None:
    if sent.lines:
        print("\n".join(sent.lines))
