"""The inputs on which two implementations of one model are compared: deterministic, each a single document.

Real text reaches the numbers a user will see; random ids reach every row of the vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_codemix.config import RunConfig, Url
from megatron_codemix.errors import UserError
from megatron_codemix.shards import SplitReader

LENGTHS = (1, 2, 17, 64, 256)
"""Tokens of the probes; longer than the model's windows are cut."""
_LARGEST_WINDOW = 1024
"""Sliding windows up to this many tokens are gone beyond."""
_DOCUMENTS = 256
"""Documents at the beginning of a split among which a probe of a wanted length is looked for."""
_MOST_SCORES = 1 << 26
"""Log-probabilities that the comparison keeps at most (256 MiB of fp32); large vocabularies get fewer tokens."""


@dataclass(frozen=True)
class Probe:
    """One input."""

    origin: str
    """Where its tokens come from, in words."""
    tokens: np.ndarray
    """(n,) int64."""
    random: bool
    """Whether they are random ids."""


def make_probes(config: RunConfig, readers: dict[str, SplitReader], vocab_size: int, key: str) -> list[Probe]:
    """Random ids of each length and, where `readers` has validation splits, the beginning of a document of each length.

    key: decides the random ids; the same key gives the same probes.
    """
    longest = max(stage.sequence_length for stage in config.history)
    window = config.model.sliding_window
    # beyond a small window, so that it shows; a large one would make every position dear, and is narrowed instead (`narrowing`)
    lengths = [*LENGTHS, window + 3] if window and window <= _LARGEST_WINDOW else LENGTHS
    wanted = _affordable(sorted({min(length, longest) for length in lengths}), vocab_size, 2 if readers else 1)
    digest = hashlib.sha256(f"conversion probes\0{key}".encode()).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    probes = []
    for length in wanted:
        ids = draw.integers(0, vocab_size, length)
        ids[0], ids[-1] = 0, vocab_size - 1
        probes.append(Probe(f"{length} random ids", ids, random=True))
    for number, length in enumerate(wanted if readers else ()):
        name = sorted(readers)[number % len(readers)]
        probes.append(_document(name, readers[name], length))
    return probes


def narrowing(window: int | None, probes: Sequence[Probe]) -> int:
    """By how many positions both implementations' sliding windows are made shorter, so that probes go beyond one that is longer.

    Each takes them off its own window: windows that are not equal stay so, and half of the longest probe's positions show it.
    """
    longest = max(probe.tokens.size for probe in probes)
    return max(window - max(longest // 2, 1), 0) if window and window >= longest else 0


def _affordable(lengths: list[int], vocab_size: int, repeats: int) -> list[int]:
    budget = max(_MOST_SCORES // vocab_size // repeats, 2)
    kept: list[int] = []
    for length in lengths:
        if sum(kept) + length <= budget:
            kept.append(length)
    return kept


def _document(name: str, reader: SplitReader, length: int) -> Probe:
    """The beginning of the first document with `length` tokens among the first ones, else the longest of these."""
    best = 0
    for number in range(min(_DOCUMENTS, reader.manifest.num_documents)):
        size = reader.document(number).tokens.size
        if size > reader.document(best).tokens.size:
            best = number
        if size >= length:
            break
    tokens = reader.document(best).tokens[:length].astype(np.int64)
    return Probe(f"{tokens.size} tokens of document {best} of '{name}'", tokens, random=False)


def validation_readers(config: RunConfig, tokenizer_fingerprint: str) -> dict[str, SplitReader]:
    """The run's validation splits that can be read from here and were made with its tokenizer and hold documents."""
    readers: dict[str, SplitReader] = {}
    for name, source in config.sources.items():
        reader = _reader(source.path / source.validation_split) if source.validation_split else None
        if reader is not None and reader.manifest.tokenizer_fingerprint == tokenizer_fingerprint and reader.manifest.num_documents:
            readers[name] = reader
    return readers


def _reader(folder: Path | Url) -> SplitReader | None:
    try:
        return SplitReader(folder)
    except UserError:
        return None  # the shards are not on this machine, or have changed: random ids serve as well
