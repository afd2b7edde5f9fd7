"""A chunk → its shard files and its record: everything from reading to writing in one worker process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.chunk_documents import ShardsTask, chunk_documents
from data_prep.documents import Document
from data_prep.drops import DROPS_NAME, DropsWriter
from data_prep.held_out import AsideWriter
from data_prep.pipeline import Counts, Division
from data_prep.stages import RECORD_NAME
from data_prep.tokenise import DocumentEncoder, Encoded, prove
from megatron_codemix.files import atomic_directory, write_json
from megatron_codemix.shards import ShardInfo, ShardWriter, document_id, token_dtype_for
from megatron_codemix.tokenizer import Tokenizer

_BATCH_BYTES = 1 << 20
_PROOF_PIECE, _PROOF_LEAST, _PROOF_SHARE = 2048, 8192, 2048


class _Here:
    """What a process keeps between chunks."""

    tokenizer: Tokenizer | None = None


def use_tokenizer(tokenizer: Tokenizer) -> None:
    """Tokenise with it in this process from now on."""
    _Here.tokenizer = tokenizer


class Proof:
    """Samples from all of a shard on which the fast engine is compared with the reference before the shard is published."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._samples: list[str] = []
        self._sampled = self._seen = 0

    def add(self, text: str) -> None:
        """Consider a text: 2,048 characters of each are kept until there are 8,192, then so many from every 4 million."""
        self._seen += len(text)
        if self._sampled < _PROOF_LEAST + self._seen // _PROOF_SHARE:
            start = (len(text) * 0x9E3779B1 & 0xFFFFFFFF) % max(1, len(text) - _PROOF_PIECE)
            piece = text[start : start + _PROOF_PIECE]
            self._samples.append(piece)
            self._sampled += len(piece)

    def close(self) -> None:
        """Compare. Raises EngineMismatch."""
        prove(self._tokenizer, self._samples, self._sampled)
        self._samples, self._sampled, self._seen = [], 0, 0


class _TrainWriter:
    """The shard files of one chunk, in turn."""

    def __init__(self, task: ShardsTask, tokenizer: Tokenizer) -> None:
        self._task, self._proof = task, Proof(tokenizer)
        spec = task.config.sources[task.source]
        self._settings: dict[str, Any] = {
            "modality": spec.modality,
            "token_dtype": token_dtype_for(tokenizer.vocab_size),
            "vocab_size": tokenizer.vocab_size,
            "end_of_text_id": tokenizer.end_of_text_id,
            "pack_tokens": task.config.pack_tokens,
        }
        self._shard: ShardWriter | None = None
        self.infos: list[ShardInfo] = []
        for leftover in (*task.train.glob(f"shard-{task.number:05d}-*"), *task.train.glob(f".shard-{task.number:05d}-*")):
            leftover.unlink()

    def __enter__(self) -> _TrainWriter:
        return self

    def add(self, document: Document, num_bytes: int, encoded: Encoded) -> None:
        if self._shard is None:
            self._shard = ShardWriter(self._task.train, f"{self._task.number:05d}-{len(self.infos):03d}", **self._settings)
        identity = document_id(document.name)
        self._shard.add(encoded.tokens, num_bytes, identity, encoded.segments, document.language, document.license)
        self._proof.add(document.text)
        if self._shard.num_tokens >= self._task.config.shard_tokens:
            self.close()

    def close(self) -> None:
        if self._shard is not None:
            self._proof.close()
            self.infos.append(self._shard.close())
            self._shard = None

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if error is None:
            self.close()
        elif self._shard is not None:
            self._shard.abort(error)


@dataclass(slots=True)
class _Ready:
    """A document that is about to be tokenised."""

    document: Document
    num_bytes: int
    hash: int
    held_out: bool


class _ChunkWriter:
    """Tokenises documents in batches and hands them on: training to shards, held-out ones aside."""

    def __init__(self, task: ShardsTask, train: _TrainWriter, aside: AsideWriter, tokenizer: Tokenizer) -> None:
        spec = task.config.sources[task.source]
        self._train, self._aside = train, aside
        self._encoder = DocumentEncoder(task.source, tokenizer, spec.modality)
        self._proof = Proof(tokenizer)
        self._division = Division(task.config.split.validation, task.config.split.seed)
        self._batch: list[_Ready] = []
        self._batch_bytes = 0
        self.text_bytes = 0
        self.num_documents = 0

    def add(self, document: Document, num_bytes: int, hashed: int) -> None:
        self._batch.append(_Ready(document, num_bytes, hashed, self._division.held_out(document)))
        self._batch_bytes += num_bytes
        if self._batch_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        encoded = self._encoder.encode([item.document for item in self._batch])
        for item, one in zip(self._batch, encoded, strict=True):
            if item.held_out:
                self._aside.held_out(item.document, item.num_bytes, item.hash, one)
                self._proof.add(item.document.text)
            else:
                self._train.add(item.document, item.num_bytes, one)
                self._aside.training(item.hash)
                self.num_documents += 1
        self.text_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0

    def close(self) -> None:
        self.flush()
        self._proof.close()


def make_chunk(task: ShardsTask) -> dict[str, Any]:
    """Write a chunk's shards and, last, its record; returns the record.

    Raises UserError for bad input, EngineMismatch when the fast engine differs from the reference.
    """
    tokenizer = _Here.tokenizer
    assert tokenizer is not None
    spec = task.config.sources[task.source]
    counts = Counts()
    shutil.rmtree(task.record, ignore_errors=True)
    with (
        atomic_directory(task.record) as folder,
        DropsWriter(folder / DROPS_NAME) as drops,
        AsideWriter(folder) as aside,
        _TrainWriter(task, tokenizer) as train,
    ):
        chunk = _ChunkWriter(task, train, aside, tokenizer)
        ids: list[int] = []
        for document, num_bytes, hashed in chunk_documents(task, counts, drops, ids):
            chunk.add(document, num_bytes, hashed)
            if counts.tally.drops:
                drops.add_all(counts.tally.drops)
                counts.tally.drops.clear()
        chunk.close()
        train.close()
        drops.add_all(counts.tally.drops)
        if spec.id_field is not None and task.chunk is not None:
            np.save(folder / "ids.npy", np.array(ids, np.uint64))
        record = {
            "key": task.key,
            "documents": chunk.num_documents,
            "held_out": aside.num_held_out,
            "text_bytes": chunk.text_bytes,
            "counts": counts.as_json(),
            "shards": [{"entry": info.entry.model_dump(), "languages": info.languages, "licenses": info.licenses} for info in train.infos],
        }
        write_json(folder / RECORD_NAME, record)
    return record
