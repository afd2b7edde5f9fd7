"""The unigram baseline: what a model knows that has learnt only how often each token occurs.

A model that does not beat it has learnt nothing of the order of tokens. It is built from what an arm
trained on: the token counts of each source's training windows, weighted by the target tokens the arm's
ledger says it consumed, add-one smoothed, and scored as the model is: end-of-text tokens included, in
bits per UTF-8 byte of the original documents.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from megatron_codemix.config import Url
from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress
from megatron_codemix.shards import SplitReader
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.zstd import open_zstd

_BLOCK_WINDOWS = 1024
_BLOCK_DOCUMENTS = 512


def token_counts(reader: SplitReader, sequence_length: int, max_tokens: int) -> np.ndarray:
    """How often each id is a target in a split's windows: int64 (vocab_size,).

    Reads every window, or as many as `max_tokens` holds, spread evenly over the split.
    """
    windows = reader.num_windows(sequence_length)
    wanted = min(windows, max(1, max_tokens // sequence_length))
    ids = np.linspace(0, windows, wanted, endpoint=False).astype(np.int64)
    counts = np.zeros(reader.manifest.vocab_size, np.int64)
    with progress(f"unigram counts of {reader.manifest.source}", wanted * sequence_length, "tokens") as bar:
        for start in range(0, wanted, _BLOCK_WINDOWS):
            block = reader.read_windows(ids[start : start + _BLOCK_WINDOWS], sequence_length)[:, 1:]
            counts += np.bincount(block.ravel(), minlength=len(counts))
            bar.advance(block.size)
    return counts


@contextmanager
def _open_lines(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as unpacked:
                yield unpacked  # type: ignore[misc]
        elif path.suffix == ".zst":
            yield open_zstd(raw)  # type: ignore[misc]
        else:
            yield raw


def read_documents(path: Path) -> Iterator[str]:
    """The `text` of every line of a jsonl, jsonl.gz or jsonl.zst file.

    Raises UserError with the line that has none, and for a file that cannot be read to its end.
    """
    try:
        with _open_lines(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); prepare the file anew") from None


def _text_of(line: bytes, where: str) -> str:
    try:
        text = json.loads(line)["text"]
        text.encode("utf-8")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: not a JSON object with a 'text' field; prepare the file anew") from None
    return text


def score_counts(path: Path, tokenizer: Tokenizer) -> tuple[np.ndarray, int, int]:
    """What a domain asks a unigram model to predict: counts of each id, with an end of text per document.

    Returns (int64 (vocab_size,), UTF-8 bytes, documents).
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    num_bytes = num_documents = 0
    block: list[str] = []

    def take() -> None:
        for ids in tokenizer.encode_batch(block):
            counts[:] += np.bincount(ids, minlength=len(counts))
        block.clear()

    for text in read_documents(path):
        num_bytes += len(text.encode("utf-8"))
        num_documents += 1
        block.append(text)
        if len(block) == _BLOCK_DOCUMENTS:
            take()
    take()
    counts[tokenizer.end_of_text_id] += num_documents
    if not num_bytes:
        raise UserError(f"{path}: holds no text to evaluate on; prepare it anew or drop this domain")
    return counts, num_bytes, num_documents


def unigram_distribution(counts: Mapping[str, np.ndarray], consumed: Mapping[str, int]) -> np.ndarray:
    """float64 (vocab_size,) probabilities: Σ_source consumed · frequency, plus one, normalised.

    counts: source → how often each id occurs in it; consumed: source → target tokens the arm trained on.
    """
    weighted = np.zeros(len(next(iter(counts.values()))), np.float64)
    for source, tokens in consumed.items():
        if tokens:
            weighted += tokens * (counts[source] / counts[source].sum())
    return (weighted + 1) / (weighted.sum() + len(weighted))


def bits_per_byte(distribution: np.ndarray, asked: np.ndarray, num_bytes: int) -> float:
    """−Σ log₂ p over the asked-for ids, per byte."""
    return float(-(asked * np.log2(distribution)).sum() / num_bytes)


class UnigramBaseline:
    """Counts shared by the arms of a study; one bits-per-byte figure per arm and domain."""

    def __init__(self, tokenizer: Tokenizer, domains: Mapping[str, Path], max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._asked = {domain: score_counts(Path(path), tokenizer) for domain, path in domains.items()}
        self._counts: dict[tuple[Path | Url, int], np.ndarray] = {}

    def of(
        self,
        folders: Mapping[str, Path | Url],
        sequence_lengths: Sequence[int],
        consumed: Mapping[str, int],
        opened: Callable[[Path | Url], SplitReader] = SplitReader,
    ) -> dict[str, float]:
        """Domain → bits per byte of the unigram model of an arm.

        folders: source → its training split; sequence_lengths: those of the arm's stages (the longest counts);
        consumed: source → target tokens from the arm's ledger; opened: how a split is opened.
        """
        length = max(sequence_lengths)
        counts = {}
        for source, folder in folders.items():
            key = (folder, length)
            if key not in self._counts:
                self._counts[key] = token_counts(opened(folder), length, self._max_tokens)
            counts[source] = self._counts[key]
        distribution = unigram_distribution(counts, consumed)
        return {domain: bits_per_byte(distribution, asked, num_bytes) for domain, (asked, num_bytes, _) in self._asked.items()}
