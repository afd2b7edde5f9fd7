"""`codemix demo`: the whole way on the running Python's own standard library, in minutes on two cores.

Documents → tokenizer → shards → verified → 3 mixtures × 2 seeds trained in turns under four layouts, an
arm of each mixture under another one again; all audited, converted and evaluated → report. Each stage is
the `codemix` command that a user would give; the files it writes (prep.yaml, study.yaml) are a user's
files. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_codemix import worker
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, StudyConfig, dump_yaml, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import write_text
from megatron_codemix.shards import SplitReader
from megatron_codemix.study.processes import run_and_wait
from megatron_codemix.study.words import count, seconds

BANNER = (
    "This demonstrates the pipeline and says nothing about code pretraining: models of about a million parameters, trained for minutes "
    "on the Python standard library. What it shows is that every stage works here, and what a study's report looks like."
)
SHARES = (0, 0.25, 0.5)
SEEDS = (0, 1)
VOCABULARY = 4096
SEQUENCE_LENGTH = 256
BATCH_SIZE = 8
MAX_TOKENS = 200_000
"""Target tokens per model at most: what two cores train in a few minutes, nine times."""
_PART = 0.95
"""No arm reads more than this part of a source, so every arm stays under one epoch."""
MIN_STEPS = 40
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "tp2": {"parallel": {"tensor": 2}},
    "pp2": {"parallel": {"pipeline": 2}, "micro_batch_size": BATCH_SIZE // 2},
    "dp2": {"parallel": {"distributed_optimizer": True}, "processes": 2, "micro_batch_size": BATCH_SIZE // 2},
}
"""The first is what the others are compared with. A pipeline needs several micro-batches, data parallelism one for each rank."""
TWINS = 1
"""Per share: with three shares, each of the other three layouts is compared with the first."""
_CUT = {"max_document_bytes": 16_000}
"""Many documents instead of a few long ones: held-out bits per byte then rest on more than one module."""
_MODEL = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "ffn_hidden_size": 384, "tied_embeddings": True}


def main(argv: Sequence[str]) -> int:
    """Run the demo; the last line on stdout is the report's path."""
    parser = ArgumentParser(prog="codemix demo", description="The whole way on this machine's own Python library, in minutes on two cores.")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder of everything it makes (default: demo)")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (default: 2)")
    options = parser.parse_args(argv)
    begun = time.monotonic()
    output: Path = options.output
    prepare(output)
    study = write_study(output)
    _stage(4, f"train, audit, convert and evaluate {len(SHARES) * len(SEEDS)} models, and {len(SHARES) * TWINS} again under another layout")
    if (code := _codemix("study", "run", str(study), "--jobs", str(options.jobs))) != 0:
        return code
    _stage(5, "report")
    code = _codemix("study", "report", str(study), show=False)
    if code == 0:
        print(f"the whole way took {seconds(time.monotonic() - begun)}", file=sys.stderr)
        print(output / "study" / "report.html", flush=True)
    return code


def prepare(output: Path) -> None:
    """Write prep.yaml, make tokenizer and shards (what is there already stays), and compare every checksum."""
    config = parse_config(prep_config(output), PrepConfig, "prep.yaml")
    path = output / "prep.yaml"
    write_text(path, dump_yaml(config))
    _stage(1, "tokenizer from the standard library of this Python")
    _must("prep", "tokenizer", str(path))
    _stage(2, "documents to shards")
    _must("prep", "shards", str(path))
    _stage(3, "verify every shard")
    _must("prep", "verify", str(config.output))


def prep_config(output: Path) -> dict[str, Any]:
    """The raw prep config: code and text of the running Python, split by module before anything is extracted."""
    return {
        "output": str(output / "data"),
        "sources": {part: {"kind": "stdlib", "part": part, "modality": part, **_CUT} for part in ("code", "text")},
        "split": {"validation": 0.06},
        "tokenizer": {"vocab_size": VOCABULARY, "sample_bytes": 8_000_000},
    }


def write_study(output: Path) -> Path:
    """Write study.yaml, as large as this Python's library allows; returns its path."""
    data = output / "data"
    readers = {part: SplitReader(data / part / "train") for part in ("code", "text")}
    windows = {part: reader.num_windows(SEQUENCE_LENGTH) for part, reader in readers.items()}
    steps = demo_steps(windows["code"], windows["text"])
    tokens = steps * BATCH_SIZE * SEQUENCE_LENGTH
    print(
        f"text: {count(readers['text'].manifest.num_tokens)} tokens, code: {count(readers['code'].manifest.num_tokens)}; ",
        end="",
        file=sys.stderr,
    )
    print(f"every model trains on {count(tokens)}", file=sys.stderr)
    config = parse_config(study_config(output, tokens), StudyConfig, "study.yaml")
    path = output / "study.yaml"
    write_text(path, dump_yaml(config))
    return path


def demo_steps(code_windows: int, text_windows: int) -> int:
    """Optimizer steps per model: under one epoch of either source in every arm, and few enough for two cores.

    Raises UserError where the library of this Python is too small.
    """
    most_code = max(SHARES)
    most_text = 1 - min(SHARES)
    windows = min(_PART * text_windows / most_text, _PART * code_windows / most_code, MAX_TOKENS / SEQUENCE_LENGTH)
    steps = int(windows / BATCH_SIZE)
    if steps < MIN_STEPS:
        raise UserError(
            f"demo: this Python's library gives {code_windows} windows of code and {text_windows} of text, too few to train on; "
            "use a Python that keeps the sources of its standard library"
        )
    return steps


def study_config(output: Path, tokens: int) -> dict[str, Any]:
    """The raw study config: everything but the shares, the seeds and the layouts is the same in every arm."""
    data, steps = output / "data", tokens // (BATCH_SIZE * SEQUENCE_LENGTH)
    held_out = {part: str(data / part / "valid" / "documents.jsonl.gz") for part in ("code", "text")}
    return {
        "name": "demo",
        "output": str(output / "study"),
        "banner": BANNER,
        "vary": "code",
        "against": "text",
        "shares": list(SHARES),
        "seeds": list(SEEDS),
        "layouts": LAYOUTS,
        "twins": TWINS,
        "base": {
            "tokenizer": str(data / "tokenizer"),
            "sources": {part: {"path": str(data / part)} for part in ("code", "text")},
            "model": _MODEL,
            "precision": "fp32",
            "micro_batch_size": BATCH_SIZE,
            "stages": [
                {
                    "name": "main",
                    "tokens": tokens,
                    "batch_size": BATCH_SIZE,
                    "sequence_length": SEQUENCE_LENGTH,
                    "learning_rate": {"shape": "cosine", "peak": 3e-3, "final": 3e-4, "warmup_tokens": tokens // 8},
                }
            ],
            "validation": {"every_steps": max(1, steps // 4), "max_windows": 32},
            "checkpoint": {"every_steps": max(1, steps // 4), "keep": 1},
        },
        "evaluation": {"bits_per_byte": held_out},
    }


def _stage(number: int, words: str) -> None:
    print(f"[{number}/5] {words}", file=sys.stderr, flush=True)


def _codemix(*arguments: str, show: bool = True) -> int:
    """Run a codemix command with its progress on our stderr; its own results too, so that the last line on stdout is ours."""
    command = [*worker.codemix_command(), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return run_and_wait(command, stdout=sys.stderr if show else subprocess.DEVNULL, env=environment)


def _must(*arguments: str) -> None:
    code = _codemix(*arguments)
    if code:
        raise UserError(
            f"demo: 'codemix {' '.join(arguments)}' ended with exit code {code}; see what it said above, mend that and run the demo again, "
            "or begin anew with another --output"
        )
