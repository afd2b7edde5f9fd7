"""What a batch script asks Python for, once a task: `python -m megatron_codemix.slurm.task prep|evaluate|convert …`.

The words are those of `codemix submit` of the same name; which units of the work are this task's, SLURM_ARRAY_TASK_ID says.
Without an array all of them are done, one after the other, so that each script also works alone. No torch here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_codemix.errors import JobError, UserError
from megatron_codemix.progress import say
from megatron_codemix.slurm import conversion, evaluations, preparation

_KINDS = {"prep": preparation.run, "evaluate": evaluations.run, "convert": conversion.run}


def main(argv: Sequence[str]) -> int:
    """Run this task's part; returns its exit code."""
    kind, *words = argv
    try:
        return _KINDS[kind](words, os.environ)
    except UserError as error:
        for line in error.problems:
            say(f"codemix {kind}: {line}")
        return 2
    except JobError as error:
        say(f"codemix {kind}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
