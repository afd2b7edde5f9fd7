"""`codemix prep shards`: every source cleaned, tokenised, divided, checked for leakage, written; the tokenizer must be there.

It is `codemix prep run` without the stage that makes the tokenizer. What is finished is not made again, and the result does
not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.run import open_run
from data_prep.stages import STAGES
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.shards import Manifest


def main(argv: Sequence[str]) -> int:
    """`codemix prep shards PREP.yaml [a.b=c …] [--force]`."""
    parser = ArgumentParser(prog="codemix prep shards", description=__doc__)
    parser.add_argument("config", type=Path, help="prep file, see docs/data-prep.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the prep file to set")
    parser.add_argument("--force", action="store_true", help="make splits anew that are there already")
    arguments = parser.parse_args(argv)
    prepare_shards(load_config(arguments.config, PrepConfig, arguments.overrides), force=arguments.force)
    return 0


def prepare_shards(config: PrepConfig, *, force: bool = False) -> dict[str, dict[str, Manifest]]:
    """Make what is missing below `config.output`; returns source → split → manifest, and prints a line for each.

    Raises UserError for bad input and for splits that were made otherwise (unless `force`).
    """
    with open_run(config) as run:
        run.load_tokenizer()
        wanted = run.begin(STAGES, force=force)
        if "clean" in wanted:
            run.clean()
            run.decide()
            run.shards()
        return run.merge()
