"""What a run reads: tokenizer, shards, and the plan they allow. Opened and checked against each other, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, compile_plan
from megatron_codemix.shards import SplitReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.train.schedule import Schedule


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads."""

    tokenizer: Tokenizer
    readers: dict[str, SplitReader]
    """Source → its training split, in the config's order."""
    validation: dict[str, SplitReader]
    """Source → its validation split; sources without one are left out."""
    plan: Plan


def open_inputs(config: RunConfig) -> Inputs:
    """Open the tokenizer and every split, and compile the plan.

    Raises UserError with all problems at once: a missing or damaged split, shards of another tokenizer, a
    validation split shorter than one window, a corpus that cannot feed the stages.
    """
    problems: list[str] = []
    tokenizer = None
    try:
        tokenizer = Tokenizer.load(config.tokenizer)
    except UserError as error:
        problems += error.problems
    if tokenizer is not None:
        problems += _missing_symbols(config, tokenizer)
    readers: dict[str, SplitReader] = {}
    validation: dict[str, SplitReader] = {}
    for name, source in config.sources.items():
        for split, found in ((source.train_split, readers), (source.validation_split, validation)):
            if split is None:
                continue
            try:
                found[name] = _open_split(source.path / split, tokenizer, config.tokenizer)
            except UserError as error:
                problems += (f"sources.{name}: {problem}" for problem in error.problems)
    try:
        Schedule(config)
    except UserError as error:
        problems += error.problems
    longest = max(stage.sequence_length for stage in config.stages)
    problems += (
        f"sources.{name}.validation_split: {reader.folder} has no window of {longest} tokens; hold more out, or set it to null"
        for name, reader in validation.items()
        if not reader.num_windows(longest)
    )
    if problems or tokenizer is None:
        raise UserError(*problems)
    windows = {name: reader.num_windows for name, reader in readers.items()}
    fingerprints = {name: reader.manifest.fingerprint for name, reader in readers.items()}
    return Inputs(tokenizer, readers, validation, compile_plan(config, windows, fingerprints))


def _missing_symbols(config: RunConfig, tokenizer: Tokenizer) -> list[str]:
    """Symbols that objectives need and a tokenizer that was taken over may lack; a problem for each stage."""
    problems = []
    for index, stage in enumerate(config.stages):
        missing = [name for name in stage.objective.symbols if name not in tokenizer.special_ids]
        if missing:
            problems.append(
                f"stages[{index}].objective: the tokenizer {config.tokenizer} has no {', '.join(missing)}; use one that reserves them "
                "('codemix prep tokenizer' makes one), or another objective"
            )
    return problems


def _open_split(folder: Path, tokenizer: Tokenizer | None, tokenizer_path: Path) -> SplitReader:
    reader = SplitReader(folder)
    theirs = reader.manifest.tokenizer_fingerprint
    if tokenizer is not None and theirs != tokenizer.fingerprint:
        raise UserError(
            f"{folder}: made with another tokenizer ({theirs[:12]}…) than {tokenizer_path} ({tokenizer.fingerprint[:12]}…); "
            "point 'tokenizer' at the one these shards were made with, or make the shards anew"
        )
    return reader
