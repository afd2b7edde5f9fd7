"""The newest checkpoint of a run, converted by a job: done again only where training has gone on since."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json
from megatron_codemix.progress import say
from megatron_codemix.slurm.arrays import Step, Unit, leave_word, run_unit
from megatron_codemix.slurm.chain import FOLDER, newest_step

_SAME = ("run", "step", "plan")
"""What codemix.json and checkpoint.json both say of a checkpoint."""


def add_conversion(parser: argparse.ArgumentParser) -> None:
    """The arguments of `codemix convert to-hf` that are passed on."""
    parser.add_argument("--hf-dtype", choices=("fp32", "bf16"), default="fp32", help="of the converted weights (default: fp32)")
    parser.add_argument("--max-shard-size", metavar="BYTES", help="of one weight file, such as 4GiB")


def conversion_words(arguments: argparse.Namespace) -> list[str]:
    """The words from which `add_conversion`'s arguments were read."""
    size = ["--max-shard-size", arguments.max_shard_size] if arguments.max_shard_size else []
    return ["--hf-dtype", arguments.hf_dtype, *size]


def step_of(run: Path, out: Path, arguments: argparse.Namespace) -> Step:
    """The job."""
    words = conversion_words(arguments)
    return Step("convert", (_unit(run, out, words),), (str(run), str(out), *words))


def _unit(run: Path, out: Path, words: Sequence[str]) -> Unit:
    """Named as its output, so that one run may be converted to several."""
    passed = ["--dtype" if word == "--hf-dtype" else word for word in words]
    checkpoint = _newest(run)
    return Unit(
        f"convert.{out.name}",
        ("convert", "to-hf", str(run), str(out), *passed),
        inputs=(checkpoint,) if checkpoint is not None else (),
        product=out / "codemix.json",
    )


def _newest(run: Path) -> Path | None:
    step = newest_step(run)
    return run / "checkpoints" / f"step-{step:08d}" if step else None


def run(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """What convert.sbatch does: RUN HF_DIR [--hf-dtype …]."""
    parser = ArgumentParser(prog="convert.sbatch")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="HF_DIR")
    add_conversion(parser)
    arguments = parser.parse_args(list(argv))
    checkpoint = _newest(arguments.run)
    if checkpoint is None:
        raise UserError(f"{arguments.run}: holds no checkpoint; give the folder of a run that has trained")
    folder, unit = arguments.run / FOLDER, _unit(arguments.run, arguments.out, conversion_words(arguments))
    if _is_there(arguments.out, read_json(checkpoint / "checkpoint.json", "checkpoint record"), arguments.hf_dtype):
        # whoever made it, or was ended before it could leave word
        say(f"{arguments.out}: is that of {checkpoint} already")
        leave_word(folder, unit, unit.key(), 0, time.time())
        return 0
    return run_unit(folder, unit)


def _is_there(out: Path, record: dict[str, Any], dtype: str) -> bool:
    """Whether `out` was made from the checkpoint of this record. Moves aside what was made from another checkpoint of this very run;
    whatever else lies there the conversion refuses."""
    try:
        made = json.loads((out / "codemix.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(made, dict) or made.get("run") != record.get("run") or made.get("average"):
        return False
    if all(made.get(key) == record.get(key) for key in _SAME):
        return made.get("dtype") == dtype
    aside = out.with_name(f"{out.name}.step-{made.get('step')}")
    if not aside.exists():
        out.rename(aside)
        say(f"{out}: was made from step {made.get('step')}; it is {aside} now")
    return False
