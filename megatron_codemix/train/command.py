"""`codemix train RUN.yaml [a.b=c …]`: train a run, or resume it where it stopped."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.checkpoint import step_folders
from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.train.inputs import open_inputs
from megatron_codemix.train.resume import is_finished
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE

_DESCRIPTION = f"""Train the run that RUN.yaml declares, or continue it from the newest checkpoint in its output folder.

  codemix train RUN.yaml
  codemix train RUN.yaml logging.every_steps=1 'stages.0.learning_rate.peak=3e-4'
  torchrun --nproc-per-node 8 -m megatron_codemix.cli train RUN.yaml

SIGTERM, SIGUSR1 and Ctrl-C finish the step, save a checkpoint and leave with exit code {STOPPED_EXIT_CODE};
the same command continues. Exit code 0: the run is finished."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns 0 (finished), 75 (asked to stop, saved) or 1 (diverged). Raises UserError."""
    parser = ArgumentParser(prog="codemix train", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN.yaml", type=Path, help="run config; see docs/config.md")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="fields to set after reading the file; values are YAML")
    arguments = parser.parse_args(argv)

    config = load_config(arguments.run, RunConfig, arguments.overrides)
    inputs = open_inputs(config)
    if is_finished(config, inputs):
        print(f"{config.name}: finished already; newest checkpoint: {step_folders(config.output)[0]}")
        return 0
    # megatron-core takes seconds to import: a mistake in the input should not have to wait for it
    assemble = importlib.import_module("megatron_codemix.train.assemble")
    return assemble.train_run(config, inputs, arguments.overrides)
