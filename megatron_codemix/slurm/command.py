"""`codemix submit …`: jobs of Slurm. A word that names a subcommand is one; anything else is a run file."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.slurm.site import load_site, slurm_time
from megatron_codemix.slurm.submit import Request, following, require_unqueued, submission_name, submit, training_job

SUBCOMMANDS = {
    "prep": "megatron_codemix.slurm.preparation:main",
    "evaluate": "megatron_codemix.slurm.evaluations:main",
    "chain": "megatron_codemix.slurm.pipeline:main",
}
"""Subcommand → module:function, which takes the remaining words and returns the exit code."""

_DESCRIPTION = """Submit a run to Slurm. Its job starts as often as the run needs: each start saves before its time limit, another goes on.

  codemix submit RUN.yaml --nodes 4 --time 24:00:00
  codemix submit RUN.yaml logging.every_steps=1 --nodes 4 --dry-run
  codemix submit prep | evaluate | chain --help     data, evaluations, and train → convert → evaluate

What the cluster asks of every job stands in the site file (launch_scripts/site.example.yaml): --site, else $CODEMIX_SITE, else
~/.config/codemix/site.yaml. The job reads a copy of RUN.yaml, so the file may be changed while it waits."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises UserError."""
    words = list(argv)
    if words and words[0] in SUBCOMMANDS:
        module, function = SUBCOMMANDS[words[0]].split(":")
        return getattr(importlib.import_module(module), function)(words[1:])
    return _train(words)


def _train(words: list[str]) -> int:
    parser = ArgumentParser(prog="codemix submit", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes that train (default 1)")
    parser.add_argument("--spare", type=int, default=0, metavar="N", help="more nodes, to stand in for those that fail preflight")
    parser.add_argument("--time", metavar="H:M:S", help="time limit of one start (default: the site's)")
    parser.add_argument("--site", type=Path, metavar="SITE.yaml", help="the cluster's settings")
    parser.add_argument("--after", metavar="JOB[:JOB…]", help="begin when these jobs have succeeded; inputs need not be there yet")
    parser.add_argument("--accept-changes", action="store_true", help="as of codemix train")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="one more option of sbatch: --sbatch=--nice=100")
    parser.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    given = parser.parse_intermixed_args(words)
    require_counts(parser, nodes=(given.nodes, 1), spare=(given.spare, 0))
    request = Request(
        run_file=given.run,
        overrides=tuple(given.overrides),
        nodes=given.nodes,
        spare=given.spare,
        time=checked_time(parser, given.time),
        accept_changes=given.accept_changes,
        after=given.after,
        sbatch=tuple(given.sbatch),
    )
    site = load_site(given.site)
    place = "" if given.dry_run else submission_name()
    config, job = training_job(request, site, place)
    if given.dry_run:
        print(job.script, end="")
        return 0
    ending = require_unqueued(config.output) if request.after is None else []
    if ending:  # a job that was cancelled saves for some seconds more
        request = replace(request, sbatch=(*request.sbatch, f"--dependency=afterany:{':'.join(ending)}"))
        config, job = training_job(request, site, place)
    submitted = submit(job, place)
    processes = f"{request.nodes} node(s) × {site.processes} process(es)"
    print(f"job {submitted.job}: {config.name} on {processes}, {request.time or site.time} a start")
    if ending:
        print(f"  begins when job {' '.join(ending)}, which trains into the same folder, has ended")
    print("\n".join(f"  {line}" for line in following(submitted, config.output)))
    return 0


def checked_time(parser: ArgumentParser, time: str | None) -> str | None:
    """A time limit from the command line. Raises UserError."""
    try:
        return slurm_time(time)
    except ValueError as error:
        parser.error(f"--time {time}: {error}")


def require_counts(parser: ArgumentParser, **counts: tuple[int, int]) -> None:
    """Raises UserError where an option's number lies below its least: name=(number, least)."""
    for name, (number, least) in counts.items():
        if number < least:
            parser.error(f"--{name} {number}: give {least} or more")
