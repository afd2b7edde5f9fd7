"""Steps handed to Slurm: what is done or in the queue already is left out, each job waits for the one before."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.slurm.arrays import Step, Submission, as_ranges, is_done, plan_submissions
from megatron_codemix.slurm.script import log_pattern, placement, render
from megatron_codemix.slurm.site import SiteConfig, load_site, slurm_time
from megatron_codemix.slurm.squeue import Job as QueuedJob
from megatron_codemix.slurm.squeue import queue
from megatron_codemix.slurm.submit import Job, Submitted, submission_name, submit


@dataclass(frozen=True)
class Work:
    """Steps of one kind, in one folder."""

    kind: str
    """prep, evaluate, convert."""
    name: str
    """Of the jobs, before the step's."""
    body: str
    """File in launch_scripts."""
    folder: Path
    """Records, scripts, logs."""
    steps: tuple[Step, ...]
    variables: dict[str, str | int] = field(default_factory=dict)
    gpus: int = 0
    """GPUs of a task; 0: none is asked for."""


@dataclass(frozen=True)
class Settings:
    """What the command line says of all jobs of one submission."""

    site: SiteConfig
    time: str | None = None
    cpus: int | None = None
    memory: str | None = None
    at_once: int | None = None
    sbatch: tuple[str, ...] = ()
    dry_run: bool = False
    again: bool = False


@dataclass(frozen=True)
class Sent:
    """What became of a submission."""

    jobs: list[Submitted]
    lines: list[str]
    """What to print, a line for each step."""
    last: str | None
    """The job of the last step: submitted now, or in the queue already; None: it is done."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that `settings_of` reads."""
    parser.add_argument("--site", type=Path, metavar="SITE.yaml", help="the cluster's settings")
    parser.add_argument("--time", metavar="H:M:S", help="time limit of a task (default: the site's)")
    parser.add_argument("--cpus", type=int, metavar="N", help="cores of a task (default: the site's)")
    parser.add_argument("--memory", metavar="SIZE", help="memory of a task, as 64G (default: what Slurm gives)")
    parser.add_argument("--at-once", type=int, metavar="N", help="tasks of an array that may run at a time")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="one more option of sbatch: --sbatch=--nice=100")
    parser.add_argument("--retry-failed", action="store_true", help="what the command does anyway: only what is missing is submitted")
    parser.add_argument("--again", action="store_true", help="submit all tasks, also those that are done")
    parser.add_argument("--dry-run", action="store_true", help="print the scripts; write and submit nothing")


def settings_of(arguments: argparse.Namespace, parser: ArgumentParser) -> Settings:
    """Raises UserError for a time that is none, and for numbers below 1."""
    try:
        time = slurm_time(arguments.time)
    except ValueError as error:
        parser.error(f"--time {arguments.time}: {error}")
    for name in ("cpus", "at_once"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} {number}: give 1 or more")
    return Settings(
        load_site(arguments.site),
        time,
        arguments.cpus,
        arguments.memory,
        arguments.at_once,
        tuple(arguments.sbatch),
        arguments.dry_run,
        arguments.again,
    )


def send(work: Work, settings: Settings, after: str | None = None, fresh: bool = False) -> Sent:
    """Submit what is missing of `work`; with `dry_run` only print the scripts.

    after: a job that the first step waits for; its outputs are not there yet, so nothing counts as done. fresh: it was submitted
    just now, so what is in the queue already waits for another one. Raises UserError where Slurm refuses; what was submitted
    before stays, and the same command goes on behind it.
    """
    known = {} if settings.dry_run or fresh else _open_tasks(work.folder)
    done = {step.name: [] if settings.again or after else _done(work, step) for step in work.steps}
    plan = plan_submissions(work.steps, done, known)
    sent: list[Submitted] = []
    lines: list[str] = []
    place = _place(work.folder)
    for submission in plan:
        waits = sent[submission.behind].job if submission.behind is not None and sent else None
        numbers = [placeholder(one.step.name) for one in plan] if settings.dry_run else [one.job for one in sent]
        first = after if submission is plan[0] else None
        job = _job(work, submission, settings, numbers, first)
        if settings.dry_run:
            print(job.script)
            continue
        sent.append(submit(job, f"{place}-{submission.step.name}"))
        lines.append(_line(submission, sent[-1], waits or first))
    if not plan and not settings.dry_run:
        queued = sorted({job for tasks in known.values() for job in tasks.values()})
        lines.append(
            f"nothing to submit: in the queue already: {' '.join(queued)}" if queued else "nothing to submit: all of it is done (--again)"
        )
    last = sent[-1].job if sent else next(iter(known.get(work.steps[-1].name, {}).values()), None)
    return Sent(sent, lines, placeholder(work.steps[-1].name) if settings.dry_run else last)


def placeholder(step: str) -> str:
    """Stands in a dry run for the id that Slurm would give to a step's job."""
    return f"JOB_OF_{step.upper()}"


def _place(folder: Path) -> str:
    """Beginning of the names of this submission's folders; two of one second are told apart."""
    name, number = submission_name(), 1
    while any(folder.glob(f"{(place := name if number == 1 else f'{name}.{number}')}-*")):
        number += 1
    return place


def _line(submission: Submission, submitted: Submitted, waits: str | None) -> str:
    step, size = submission.step, len(submission.tasks)
    of = (
        f"{size} of {len(step.units)} tasks ({as_ranges(submission.tasks)})"
        if size < len(step.units)
        else f"{size} task{'s' if size > 1 else ''}"
    )
    return f"job {submitted.job}: {step.name}, {of}" + (f", behind job {waits}" if waits else "")


def _job(work: Work, submission: Submission, settings: Settings, submitted: Sequence[str], after: str | None) -> Job:
    site, step = settings.site, submission.step
    many = len(step.units) > 1
    log = log_pattern((site.logs or work.folder / "logs").absolute(), "%x-%A-%a.log" if many else "%x-%j.log")
    options: dict[str, str | int | None] = {
        "job-name": f"{work.name}-{step.name}",
        **placement(site),
        "nodes": 1,
        "ntasks": 1,
        "gpus-per-node": None if step.light else work.gpus or None,
        "cpus-per-task": 1 if step.light else settings.cpus or _share_of_cpus(site, work.gpus),
        "mem": None if step.light else settings.memory,
        "time": settings.time or site.time,
        "chdir": str(Path.cwd()),
        "output": log,
        "open-mode": "append",
        "requeue": "",
        "comment": f"codemix {work.kind} {work.folder.absolute()}",
        **({"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"} if after else {}),
        **submission.options(submitted, settings.at_once),
    }
    script = render(
        work.body,
        options=options,
        site=site,
        variables={**work.variables, "CODEMIX_PROCESSES": work.gpus or 1},
        arguments=step.arguments,
        more=settings.sbatch,
    )
    units = [step.units[task].name for task in submission.tasks]
    facts = {"step": step.name, "tasks": list(submission.tasks), "of": len(step.units), "array": many, "units": units}
    return Job(work.kind, f"{work.name}-{step.name}", work.folder, script, log, facts=facts)


def _share_of_cpus(site: SiteConfig, gpus: int) -> int | None:
    """Cores of a task: with GPUs, as many of a node's as it has of its GPUs."""
    if site.cpus_per_task is None or not gpus or not site.gpus_per_node:
        return site.cpus_per_task
    return max(site.cpus_per_task * gpus // site.gpus_per_node, 1)


def _done(work: Work, step: Step) -> list[int]:
    return [index for index, unit in enumerate(step.units) if is_done(work.folder, unit)]


def submissions_in(folder: Path) -> list[dict[str, Any]]:
    """submitted.json of every submission into a folder, the oldest first; damaged ones are passed over."""
    found = []
    for path in sorted(folder.glob("submit-*/submitted.json")):
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and isinstance(value.get("job"), str):
            found.append(value)
    return sorted(found, key=lambda one: one.get("submitted", 0.0))


def _open_tasks(folder: Path) -> dict[str, dict[int, str]]:
    """Step → unit → what waits or runs for it, by what was submitted into the folder. Raises JobError where Slurm does not answer."""
    submissions = submissions_in(folder)
    jobs: dict[str, list[QueuedJob]] = {}
    for job in queue([one["job"] for one in submissions]) if submissions else []:
        if job.is_open:
            jobs.setdefault(job.array, []).append(job)
    found: dict[str, dict[int, str]] = {}
    for one in submissions:
        tasks = found.setdefault(str(one.get("step")), {})
        for job in jobs.get(one["job"], []):
            if not _is_of(job, str(one.get("kind")), folder):
                continue
            index = job.index if one.get("array") else 0
            if index is not None:
                tasks[index] = job.id
    return found


def _is_of(job: QueuedJob, kind: str, folder: Path) -> bool:
    """Whether it works on the folder. Slurm's ids begin anew where a cluster is set up anew: it may be anyone's."""
    return job.work is not None and job.work[0] == kind and os.path.realpath(job.work[1]) == os.path.realpath(folder)


def following(work: Work, sent: Sent) -> list[str]:
    """How to follow and stop the jobs, in lines."""
    jobs = " ".join(one.job for one in sent.jobs)
    logs = shlex.quote(str(sent.jobs[0].log.parent))
    return [f"logs     {logs}", f"state    codemix jobs {shlex.quote(str(work.folder))}", f"cancel   scancel {jobs}"]


def report(work: Work, sent: Sent, result: str) -> None:
    """Print what was submitted; result: where the work ends up."""
    print("\n".join(sent.lines))
    if sent.jobs:
        print("\n".join(f"  {line}" for line in [*following(work, sent), f"result   {result}"]))


def require_folder(folder: Path) -> None:
    """Raises UserError where the folder for records cannot be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; move it, or choose another output")
