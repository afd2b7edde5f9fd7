"""Where a model came from: another library's files (`origin.json`), or the weights that a run began with. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_codemix.checkpoint.record import Record, differences
from megatron_codemix.checkpoint.store import Checkpoint
from megatron_codemix.config import ModelConfig
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_json

ORIGIN_NAME = "origin.json"
ORIGIN_VERSION = 1
OWN_CHOICES = {"init_std", "hidden_dropout", "attention_dropout"}
"""Fields of a shape that no weight depends on: a run that begins with a model's weights may set them as it likes."""


@dataclass(frozen=True)
class Origin:
    """Where a model was taken from."""

    kind: str
    """huggingface or megatron-lm."""
    name: str
    """Of its folder."""
    files: dict[str, dict[str, Any]]
    """File of the original → size, and sha256 of its content."""
    config: dict[str, Any]
    """Its own description: config.json, or the arguments that decide a shape."""
    dtype: str
    """Of its weights: fp32, bf16 or fp16; our copy is fp32."""
    max_positions: int
    """Its longest context."""
    tokenizer_changes: list[str]
    """What the tokenizer no longer does, a line each."""
    agreement: dict[str, Any]
    """How far log-probabilities agreed."""
    added_entries: int = 0
    """Rows appended to its vocabulary for reserved symbols, each the mean of its own."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Origin | None:
        """Of a checkpoint that was taken over; None where a run wrote it. Raises UserError for a malformed one."""
        if ORIGIN_NAME not in checkpoint.record.files:
            return None
        path = checkpoint.folder / ORIGIN_NAME
        raw = read_json(path, "origin")
        if not isinstance(raw, dict) or raw.pop("format_version", None) != ORIGIN_VERSION:
            raise UserError(f"{path}: not an origin of format_version {ORIGIN_VERSION}; use the codemix that wrote it")
        try:
            return cls(**raw)
        except TypeError as error:
            raise UserError(f"{path}: is malformed ({error}); convert the model again") from None


def weights_digest(record: Record) -> str:
    """Identity of a checkpoint's weights: sha256 over the digests of its weight files."""
    return sha256_json({name: entry.sha256 for name, entry in record.files.items() if name.startswith("weights/")})


def begun_from(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What a run's lineage says of the weights that it began with; None: it began from scratch."""
    return checkpoint.lineage().get("initial_weights")


def as_initial_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as the lineage of a run that begins with its weights names it."""
    origin, record = Origin.of(checkpoint), checkpoint.record
    longest = origin.max_positions if origin else max(stage.sequence_length for stage in checkpoint.config().history)
    before = None if origin else begun_from(checkpoint)
    return {
        "run": record.run,
        "step": record.step,
        "engine": record.engine,
        "weights": weights_digest(record),
        "max_positions": max(longest, (before or {}).get("max_positions", 0)),
        **({"files": origin.files} if origin else {}),
        **({"initial_weights": before} if before else {}),
    }


def require_fitting(checkpoint: Checkpoint, model: ModelConfig, vocab_size: int, tokenizer_fingerprint: str) -> None:
    """Refuse weights that a run of this shape and tokenizer cannot begin with. Raises UserError naming each field that differs."""
    mine = {"model": model.model_dump(exclude=OWN_CHOICES), "vocab_size": vocab_size}
    theirs = {"model": checkpoint.record.model.model_dump(exclude=OWN_CHOICES), "vocab_size": checkpoint.record.vocab_size}
    remedy = "set the run's to it, or begin with other weights"
    problems = [f"initial_weights: {checkpoint.folder}: is of another shape ({line}); {remedy}" for line in differences(mine, theirs)]
    found = checkpoint.record.tokenizer_fingerprint
    if found != tokenizer_fingerprint:
        problems.append(
            f"initial_weights: {checkpoint.folder}: belongs to another tokenizer ({found[:12]}…, not {tokenizer_fingerprint[:12]}…); "
            f"make the shards with tokenizer.from_file: {checkpoint.tokenizer}"
        )
    if problems:
        raise UserError(*problems)
