"""`codemix train RUN.yaml [a.b=c …]`: train a run, or resume it where it stopped."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_codemix import worker
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.checkpoint import Alone
from megatron_codemix.config import RunConfig, data_ranks, load_config
from megatron_codemix.progress import say
from megatron_codemix.train.branch import find_trunk, resolve_branch
from megatron_codemix.train.cautions import run_cautions
from megatron_codemix.train.initial import find_initial
from megatron_codemix.train.inputs import open_inputs
from megatron_codemix.train.launch import launch
from megatron_codemix.train.marker import mark_again
from megatron_codemix.train.resume import finished_words, is_finished, require_as_asked
from megatron_codemix.train.stacks import STACKS
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE

_DESCRIPTION = f"""Train the run that RUN.yaml declares, or continue it from the newest checkpoint in its output folder.

  codemix train RUN.yaml
  codemix train RUN.yaml logging.every_steps=1 'stages.0.learning_rate.peak=3e-4'
  codemix train RUN.yaml --nproc 8                 8 processes on this machine, one a GPU
  torchrun --nproc-per-node 8 -m megatron_codemix.cli train RUN.yaml

SIGTERM, SIGUSR1, SIGHUP and Ctrl-C finish the step, save a checkpoint and leave with exit code {STOPPED_EXIT_CODE};
the same command continues. Exit code 0: the run is finished."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns 0 (finished), 75 (asked to stop, saved) or 1 (diverged). Raises UserError."""
    parser = ArgumentParser(prog="codemix train", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "require"),
        default="auto",
        help="auto: continue if there is a checkpoint (default); never: there must be none; require: there must be one",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="continue although stages or optimizer are others than before, where the steps made would have read the same; recorded",
    )
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes to start on this machine: one a GPU (default 1)")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand before and after options

    config = resolve_branch(load_config(arguments.run, RunConfig, arguments.overrides))
    if arguments.nproc != 1 and worker.is_worker():
        parser.error("--nproc starts processes, but this one was started as one of several (RANK is set); use one way or the other")
    if arguments.nproc < 1:
        parser.error(f"--nproc {arguments.nproc}: give the number of processes to start on this machine, 1 or more")
    worker.refuse_uncounted(os.environ)
    if not worker.is_worker():
        data_ranks(config, arguments.nproc)
    if worker.speaks_for_all():
        require_as_asked(config, arguments.resume)  # before a folder is made
    if arguments.nproc > 1:
        return launch(_worker_command(arguments), arguments.nproc, config.timeouts, config.output / STACKS)
    # of several processes one reads the small files, for all (`assemble.train_run`)
    inputs = open_inputs(config) if worker.speaks_for_all() else None
    # several processes decide that together, once they have met: one may see the end of the log later than another
    alone = None if worker.is_worker() else inputs
    if alone is not None and arguments.resume != "never" and is_finished(config, alone, Alone(), arguments.accept_changes):
        mark_again(config.output)
        print(finished_words(config))
        return 0
    if inputs is not None:
        find_initial(config, inputs.tokenizer)  # both refuse what does not fit
        find_trunk(config, inputs)
        for caution in run_cautions(config, inputs):
            say(f"caution: {caution}")
    # megatron-core takes seconds to import: a mistake in the input should not have to wait for it
    assemble = importlib.import_module("megatron_codemix.train.assemble")
    return assemble.train_run(config, inputs, arguments.overrides, arguments.resume, arguments.accept_changes)


def _worker_command(arguments: argparse.Namespace) -> list[str]:
    """This very command, as one of several processes."""
    options = ["--resume", arguments.resume, *(["--accept-changes"] if arguments.accept_changes else [])]
    return [*worker.codemix_command(), "train", *options, "--", str(arguments.run), *arguments.overrides]
