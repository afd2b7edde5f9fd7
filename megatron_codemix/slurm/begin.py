"""What the batch shell asks Python for when a start of a job begins: is the run sound, where does it write, where are the scripts.

    python -m megatron_codemix.slurm.begin --job 12 --restart 0 --chain 12 --nodes n[1-4] --world 32 -- RUN.yaml [a.b=c …]

prints the run folder and the folder of the scripts, a line each; exit code 2 and a line per mistake otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import RunConfig, data_ranks, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.slurm.chain import FINISHED_NAME, FOLDER, append, newest_step, refused_file, stop_file
from megatron_codemix.slurm.script import SCRIPTS

NODE_STORAGE = "CODEMIX_NODE_STORAGE"
"""Environment variable: folder on each node for the cache of shards."""


def train_words(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> tuple[Path, list[str]]:
    """The run file and the overrides among the arguments of `codemix train`, with the one that the node adds.

    Raises UserError where there is no run file.
    """
    plain = [word for word in words if not word.startswith("--")]
    if not plain:
        raise UserError("train.sbatch: give a run file; see the beginning of launch_scripts/train.sbatch")
    cache = [f"data.cache.folder={environment[NODE_STORAGE]}"] if environment.get(NODE_STORAGE) else []
    return Path(plain[0]), plain[1:] + cache


def main(argv: Sequence[str] | None = None) -> int:
    """Check the run, note in its chain that a start begins, print the two folders. Raises UserError."""
    parser = ArgumentParser(prog="python -m megatron_codemix.slurm.begin", description=__doc__)
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--restart", type=int, required=True, help="which start of the job, 0 for the first")
    parser.add_argument("--chain", required=True, help="id of the first job of the chain")
    parser.add_argument("--nodes", required=True, help="the job's nodes, as Slurm writes them")
    parser.add_argument("--world", type=int, required=True, help="processes in all")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut])

    path, overrides = train_words(words[cut + 1 :])
    config = load_config(path, RunConfig, overrides)
    data_ranks(config, given.world)
    run = config.output.absolute()
    try:
        (run / FOLDER).mkdir(parents=True, exist_ok=True)
        facts = {"job": given.job, "restart": given.restart, "nodes": given.nodes, "step": newest_step(run)}
        append(run, {"kind": "begin", "chain": given.chain, **facts})
        # the trainer writes it again where there is nothing left to do: one of an earlier start must not end this chain
        (run / FINISHED_NAME).unlink(missing_ok=True)
        # so must those of a job that had this id before: Slurm's ids begin anew where a cluster is set up anew, or on another one
        for left in (stop_file, refused_file):
            left(run, given.job, given.restart).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be written to ({error.strerror}); make room, or choose another 'output'") from None
    print(run, SCRIPTS, sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(*(f"codemix: {line}" for line in error.problems), sep="\n", file=sys.stderr)
        sys.exit(2)
