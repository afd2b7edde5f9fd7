"""What the batch script starts: `codemix preflight` without the rest of the command line."""

from __future__ import annotations

import sys

from megatron_codemix.errors import UserError
from megatron_codemix.progress import say
from megatron_codemix.slurm.preflight.command import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        for line in error.problems:
            say(f"codemix preflight: {line}")
        sys.exit(2)
