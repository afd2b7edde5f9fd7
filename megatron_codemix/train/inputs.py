"""What a run reads: tokenizer, shards, and the plan they allow. Opened and checked against each other, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Plan, compile_plan
from megatron_codemix.shards import SplitReader, open_split
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.train.schedule import Schedule
from megatron_codemix.train.splits import SmallFiles, open_cache, require_room


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads."""

    tokenizer: Tokenizer
    readers: dict[str, SplitReader]
    """Source → its training split, in the config's order."""
    validation: dict[str, SplitReader]
    """Source → its validation split; sources without one are left out."""
    plan: Plan

    def plan_of(self, config: RunConfig) -> Plan:
        """The plan that another config gives over the same shards. Raises UserError where it has other sources, or reads too much."""
        lacking = [name for name in config.sources if name not in self.readers]
        if lacking:
            raise UserError(f"sources: '{lacking[0]}' has been read already; declare it as before, with the same shards")
        return _compile(config, {name: self.readers[name] for name in config.sources})


def open_inputs(config: RunConfig, files: SmallFiles | None = None) -> Inputs:
    """Open the tokenizer and every split, and compile the plan. files: what another process has read of the splits.

    Raises UserError with all problems at once: a missing or damaged split, shards of another tokenizer, a
    validation split shorter than one window, a corpus that cannot feed the stages, a cache too small for what is read
    at a time; JobError where a store cannot be read from.
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
    cache = open_cache(config)
    for name, source in config.sources.items():
        for split, found in ((source.train_split, readers), (source.validation_split, validation)):
            if split is None:
                continue
            try:
                reader = open_split(source.path / split, cache, files[name, split] if files is not None else None)
                _require_tokenizer(reader, tokenizer, config.tokenizer)
                found[name] = reader
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
    require_room(config, readers, validation)
    return Inputs(tokenizer, readers, validation, _compile(config, readers))


def _compile(config: RunConfig, readers: dict[str, SplitReader]) -> Plan:
    windows = {name: reader.num_windows for name, reader in readers.items()}
    fingerprints = {name: reader.manifest.fingerprint for name, reader in readers.items()}
    shard_windows = {name: reader.shard_windows for name, reader in readers.items()}
    return compile_plan(config, windows, fingerprints, shard_windows)


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


def _require_tokenizer(reader: SplitReader, tokenizer: Tokenizer | None, tokenizer_path: Path) -> None:
    theirs = reader.manifest.tokenizer_fingerprint
    if tokenizer is not None and theirs != tokenizer.fingerprint:
        raise UserError(
            f"{reader.folder}: made with another tokenizer ({theirs[:12]}…) than {tokenizer_path} ({tokenizer.fingerprint[:12]}…); "
            "point 'tokenizer' at the one these shards were made with, or make the shards anew"
        )
