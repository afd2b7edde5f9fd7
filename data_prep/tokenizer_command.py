"""`codemix prep tokenizer`: a sample of the training documents → a tokenizer, exported and proven.

Documents are drawn evenly by a keyed hash, and only from those that `prep shards` will put into training: a tokenizer
that had seen the held-out documents would flatter bits per byte.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.documents import Tally, Unit, cut, is_held_out, text_hash
from data_prep.shards import tokenizer_folder
from data_prep.sources import open_source
from data_prep.workers import Workers, num_workers
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_directory, read_json, sha256_json, write_json
from megatron_codemix.progress import progress
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer_hf import export_to_hf
from megatron_codemix.tokenizer_training import train_tokenizer

TRAINING_NAME = "training.json"
_NUM_PROOF_TEXTS = 300
_PROOF_CHARACTERS = 20_000


def main(argv: Sequence[str]) -> int:
    """`codemix prep tokenizer PREP.yaml [a.b=c …] [--force]`."""
    parser = ArgumentParser(prog="codemix prep tokenizer", description=__doc__)
    parser.add_argument("config", type=Path, help="prep file, see docs/data-preparation.md")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the prep file to set")
    parser.add_argument("--force", action="store_true", help="make the tokenizer anew if there is one")
    arguments = parser.parse_args(argv)
    prepare_tokenizer(load_config(arguments.config, PrepConfig, arguments.overrides), force=arguments.force)
    return 0


def prepare_tokenizer(config: PrepConfig, *, force: bool = False) -> Tokenizer:
    """Train the tokenizer of `config` into OUTPUT/tokenizer, unless it is there; prints a line for each source.

    Raises UserError for bad input, or where a tokenizer made otherwise is there already (unless `force`).
    """
    folder = tokenizer_folder(config)
    sources = {name: open_source(name, spec) for name, spec in config.sources.items()}
    settings = {
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "split": config.split.model_dump(mode="json"),
        "sources": {name: spec.model_dump(mode="json") for name, spec in config.sources.items()},
        "inputs_sha256": sha256_json({name: source.inputs() for name, source in sources.items()}),
    }
    if folder.exists() and not force:
        return _already_there(folder, settings)
    samples = {name: _sample(config, name, share) for name, share in _shares(config).items()}
    texts = [text for sample in samples.values() for text in sample.texts()]
    print(f"learning {config.tokenizer.vocab_size:,} pieces from {sum(map(len, texts)) / 1e6:,.1f} M characters", flush=True)
    tokenizer = Tokenizer(_learn(texts, config.tokenizer.vocab_size))
    report = {name: _measure(tokenizer, sample) for name, sample in samples.items()}
    if force and folder.exists():
        shutil.rmtree(folder)
    with atomic_directory(folder) as unfinished:
        step = max(1, len(texts) // _NUM_PROOF_TEXTS)
        proven = export_to_hf(tokenizer, unfinished, [text[:_PROOF_CHARACTERS] for text in texts[::step]])
        write_json(unfinished / TRAINING_NAME, {"settings": settings, "fingerprint": tokenizer.fingerprint, "sample": report})
    for name, row in report.items():
        print(f"{name}: {row['documents']:,} documents, {row['bytes'] / 1e6:,.2f} MB, {row['bytes_per_token']:.2f} bytes a token")
    print(f"{folder}: made: {tokenizer.vocab_size:,} pieces; equal to its Hugging Face export on {proven:,} texts", flush=True)
    return tokenizer


def _learn(texts: list[str], vocab_size: int) -> bytes:
    # SentencePiece says nothing while it works, but lets other threads run
    with ThreadPoolExecutor(1) as pool, progress("learn the pieces", unit="s") as bar:
        future = pool.submit(train_tokenizer, texts, vocab_size)
        while wait([future], timeout=1.0).not_done:
            bar.advance(1)
        return future.result()


def _already_there(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.load(folder)
    record = folder / TRAINING_NAME
    if not record.is_file() or read_json(record, "record of the tokenizer's training").get("settings") != settings:
        raise UserError(f"{folder}: holds a tokenizer made with other settings; make it anew with --force, or give another output")
    print(f"{folder}: already there: {tokenizer.vocab_size:,} pieces", flush=True)
    return tokenizer


def _shares(config: PrepConfig) -> dict[str, int]:
    """Source → bytes of its documents to learn from. Raises UserError for impossible weights."""
    weights = config.tokenizer.weights or dict.fromkeys(config.sources, 1.0)
    problems = [
        f"tokenizer.weights.{name}: no source of that name; use one of {', '.join(config.sources)}"
        for name in weights.keys() - config.sources
    ]
    problems += [f"tokenizer.weights.{name}: {weight} is negative; give 0 or more" for name, weight in weights.items() if weight < 0]
    total = sum(weights.values())
    if not problems and not total > 0:
        problems.append("tokenizer.weights: all are 0; give at least one source a weight")
    if problems:
        raise UserError(*sorted(problems))
    shares = {name: int(config.tokenizer.sample_bytes * weights.get(name, 0) / total) for name in config.sources}
    return {name: share for name, share in shares.items() if share}


@dataclass
class Sample:
    """The documents of smallest key, whose bytes just reach the share: independent of the order they come in."""

    share: int
    """UTF-8 bytes wanted."""
    num_bytes: int = 0
    _heap: list[tuple[int, str, int]] = field(default_factory=list)

    def add(self, key: int, text: str, size: int) -> None:
        """Consider one document."""
        heapq.heappush(self._heap, (-key, text, size))
        self.num_bytes += size
        while self.num_bytes - self._heap[0][2] >= self.share:
            self.num_bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> list[str]:
        """The drawn documents, in the order of their keys."""
        return [text for _, text, _ in sorted(self._heap, key=lambda item: (-item[0], item[1]))]


@dataclass(frozen=True)
class _Draw:
    """How a worker draws."""

    validation: float
    split_seed: int
    key_seed: int
    max_document_bytes: int | None
    rate: float


class _Worker:
    draw: _Draw


def _start_worker(draw: _Draw) -> None:
    _Worker.draw = draw


def _drawn(unit: Unit) -> tuple[int, list[tuple[int, str, int]]]:
    """(bytes of input, [(key, text, bytes)]) of a unit's training documents whose key is small enough to matter."""
    draw = _Worker.draw
    found: list[tuple[int, str, int]] = []
    for document in unit.documents(Tally()):
        text, encoded = cut(document.text, draw.max_document_bytes)
        identity = text_hash(encoded)
        key = int.from_bytes(hashlib.blake2b(f"{draw.key_seed}\0{identity}".encode(), digest_size=8).digest(), "big")
        group = document.group if document.group is not None else f"text:{identity:016x}"
        if key < draw.rate * 2**64 and text.strip() and not is_held_out(group, draw.split_seed, draw.validation):
            found.append((key, text, len(encoded)))
    return unit.input_bytes, found


def _sample(config: PrepConfig, name: str, share: int) -> Sample:
    source = open_source(name, config.sources[name])
    size = sum(item[1] for item in source.inputs())
    # A text is seldom smaller than a sixteenth of its input: of a large source most documents need not leave the worker.
    rate = min(1.0, 16 * share / max(1, size))
    spec = config.sources[name]
    draw = _Draw(config.split.validation, config.split.seed, config.tokenizer.seed, spec.max_document_bytes, rate)
    sample = Sample(share)
    workers = Workers(num_workers(config.workers, size), _start_worker, (draw,))
    with workers, progress(f"read {name}", size, "bytes of input") as bar:
        for num_bytes, documents in workers.map(_drawn, source.units()):
            for document in documents:
                sample.add(*document)
            bar.advance(num_bytes)
    if not sample.num_bytes:
        raise UserError(f"sources.{name}: holds no document to learn a tokenizer from; give files that do")
    return sample


def _measure(tokenizer: Tokenizer, sample: Sample) -> dict[str, Any]:
    texts = sample.texts()
    num_tokens = sum(ids.size for ids in tokenizer.encode_batch(texts))
    return {
        "documents": len(texts),
        "bytes": sample.num_bytes,
        "tokens": num_tokens,
        "bytes_per_token": sample.num_bytes / max(1, num_tokens),
    }
