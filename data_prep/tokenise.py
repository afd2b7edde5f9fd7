"""What a worker process does: a unit of raw input → tokenised documents, divided into train and held out.

The fast engine is compared with SentencePiece on some documents of every unit, so on samples of every shard.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data_prep.documents import Tally, Unit, cut, is_held_out, text_hash
from megatron_codemix.shards import document_id, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer

_PROOF_CHARACTERS = 16 << 10


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides about a document, besides its text."""

    validation: float
    seed: int
    max_document_bytes: int | None


@dataclass(slots=True)
class Part:
    """Tokenised documents of one split."""

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint16))
    """1-d, in the shards' dtype: documents end to end, each closed by the end-of-text id."""
    num_tokens: list[int] = field(default_factory=list)
    """Tokens of each document, end of text included."""
    num_bytes: list[int] = field(default_factory=list)
    document_ids: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    """`text_hash` of each document."""
    languages: list[str | None] = field(default_factory=list)
    licenses: list[str | None] = field(default_factory=list)


@dataclass(slots=True)
class Tokenised:
    """A unit's result; what crosses processes."""

    train: Part = field(default_factory=Part)
    held_out: Part = field(default_factory=Part)
    rows: list[tuple[str, str]] = field(default_factory=list)
    """(name, text) of the held-out documents."""
    skipped: Counter[str] = field(default_factory=Counter)
    num_cut: int = 0
    """Documents cut at max_document_bytes."""
    input_bytes: int = 0
    text_bytes: int = 0


class _Worker:
    """What a process keeps between units."""

    tokenizer: Tokenizer
    dtype: np.dtype


@dataclass(frozen=True, slots=True)
class Task:
    """A unit and how to treat it."""

    unit: Unit
    settings: Settings


def start_worker(tokenizer: Tokenizer) -> None:
    """Prepare this process; see `workers.Workers`."""
    _Worker.tokenizer = tokenizer
    _Worker.dtype = np.dtype(token_dtype_for(_Worker.tokenizer.vocab_size))


def tokenise(task: Task) -> Tokenised:
    """Tokenise a unit's documents. Raises UserError for bad input, EngineMismatch when the engines differ."""
    unit, settings = task.unit, task.settings
    result = Tokenised(input_bytes=unit.input_bytes)
    tally = Tally()
    pending: dict[bool, list[str]] = {False: [], True: []}
    for document in unit.documents(tally):
        text, encoded = cut(document.text, settings.max_document_bytes)
        result.num_cut += len(text) < len(document.text)
        if not text.strip():
            tally.skipped["empty"] += 1
            continue
        identity = text_hash(encoded)
        group = document.group if document.group is not None else f"text:{identity:016x}"
        held_out = is_held_out(group, settings.seed, settings.validation)
        part = result.held_out if held_out else result.train
        if held_out:
            result.rows.append((document.name, text))
        part.num_bytes.append(len(encoded))
        part.document_ids.append(document_id(document.name))
        part.hashes.append(identity)
        part.languages.append(document.language)
        part.licenses.append(document.license)
        result.text_bytes += len(encoded)
        pending[held_out].append(text)
    for held_out, texts in pending.items():
        _encode(result.held_out if held_out else result.train, texts)
    _prove(pending[False] + pending[True])
    result.skipped = tally.skipped
    return result


def _encode(part: Part, texts: list[str]) -> None:
    closing = np.array([_Worker.tokenizer.end_of_text_id], _Worker.dtype)
    arrays: list[np.ndarray] = []
    for tokens in _Worker.tokenizer.encode_batch(texts):
        arrays += (tokens.astype(_Worker.dtype), closing)
        part.num_tokens.append(tokens.size + 1)
    if arrays:
        part.tokens = np.concatenate(arrays)


def _prove(texts: list[str]) -> None:
    """Compare the engines on texts drawn by their length (as good as chance), until 16,384 characters are seen.

    Of a long text its beginning is compared: it is a text too, and a book would cost more than all the rest.
    """
    seen = 0
    for text in sorted(texts, key=lambda text: (len(text) * 0x9E3779B1) & 0xFFFFFFFF):
        if seen >= _PROOF_CHARACTERS:
            return
        sample = text[: _PROOF_CHARACTERS - seen]
        seen += len(sample)
        _Worker.tokenizer.prove_fast([sample])
