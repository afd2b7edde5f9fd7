"""The `codemix` command: argv → one verb → its module's `main`. Only `__main__` imports this file.

Verbs are imported only when asked for: `codemix prep` must not pay for torch.
Exit codes: 0 done, 2 the user's input is wrong (a line per mistake, no traceback), 130 Ctrl-C where a verb does not answer it
itself, 1 anything else.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from megatron_codemix import worker
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.progress import say

# verb → (module:function, one line of help). The function takes the remaining argv and returns the exit code.
VERBS = {
    "prep": ("data_prep.command:main", "raw documents → tokenizer, tokenised shards; inspect and verify them"),
    "check": ("megatron_codemix.train.check:main", "validate a run without training; --batches N decodes real batches"),
    "train": ("megatron_codemix.train.command:main", "train a run, or resume it where it stopped"),
    "submit": ("megatron_codemix.slurm.command:main", "hand a run to Slurm, which trains it through time limits and failures"),
    "preflight": ("megatron_codemix.slurm.preflight.command:main", "is this machine, or a job's nodes, fit to train on"),
    "jobs": ("megatron_codemix.slurm.jobs:main", "jobs on Slurm: state, step, loss, what is left"),
    "checkpoint": ("megatron_codemix.checkpoint.manage:main", "list, verify or reshard the checkpoints of a run"),
    "convert": ("megatron_codemix.checkpoint.command:main", "checkpoint → Hugging Face directory, verified"),
    "eval": ("eval.command:main", "evaluate a Hugging Face directory, item by item"),
    "audit": ("megatron_codemix.mixture.audit:main", "reconcile what a run consumed with what it declared"),
    "study": ("megatron_codemix.study.command:main", "shares × seeds: plan, run, status, report"),
    "doctor": ("megatron_codemix.train.doctor:main", "what is installed here, and which operators will be used"),
    "demo": ("megatron_codemix.study.demo:main", "the whole way on this machine's own Python library"),
}

_INTERRUPTED = 130
"""128 + SIGINT, as a shell has it."""

_PRINTING = ("check", "checkpoint", "audit", "doctor", "jobs", "preflight")
"""Verbs that mostly tell: whoever stops to listen knows why they end."""


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {help_line}" for verb, (_, help_line) in VERBS.items()]
    return "\n".join(
        ["usage: codemix VERB …", "", "Study code in the pretraining mix: prepare, train, convert, evaluate, compare.", ""]
        + lines
        + ["", "codemix VERB --help says more."]
    )


def _resolve(verb: str):
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "one of: " + ", ".join(VERBS)
        raise UserError(f"unknown verb '{verb}'; {hint}")
    module, function = VERBS[verb][0].split(":")
    return getattr(importlib.import_module(module), function)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code and never lets a user's mistake become a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        with suppress(BrokenPipeError):  # a reader that has seen enough
            print(_help(), flush=True)
        return 0
    # megatron-core warns at import of each optional package that is missing; `codemix doctor` says so in one table.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
    # Its checkpoint writer uses parts of torch.distributed that are to be renamed: nothing a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"megatron\.core|torch\.distributed")
    if worker.is_worker():
        worker.begin()
    try:
        return _resolve(arguments[0])(arguments[1:]) or 0
    except UserError as error:
        return _failed(arguments[0], error, error.problems, 2)
    except JobError as error:
        return _failed(arguments[0], error, [str(error)], 1)
    except KeyboardInterrupt as error:
        return _failed(arguments[0], error, [str(error) or "interrupted"], 1 if worker.is_worker() else _INTERRUPTED)
    except BrokenPipeError as error:
        if worker.is_worker():
            return _failed(arguments[0], error, [worker.traceback_text(error)], 1)
        # The reader (head, less) has gone. Keep the interpreter from complaining at exit; what was to be done may not be: never 0.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if arguments[0] in _PRINTING else _failed(arguments[0], error, ["whoever read its output has gone; it ended early"], 1)
    except Exception as error:
        if not worker.is_worker():
            raise
        return _failed(arguments[0], error, [worker.traceback_text(error)], 1)


def _failed(verb: str, error: BaseException, lines: Sequence[str], exit_code: int) -> int:
    """Say what went wrong: on stderr, and to the launcher where there is one. Our own prints it, once for all workers."""
    worker.record(error)
    if not worker.has_own_launcher():
        for line in lines:
            say(f"codemix {verb}: {line}")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
