"""The documents of a chunk on their way to its shards: read, or taken from the clean store without duplicates, then shaped."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clean_store import CleanChunk
from data_prep.documents import Chunk, Document, Drop, Step, text_hash
from data_prep.drops import DropsWriter
from data_prep.gather import group_parts
from data_prep.pipeline import Counts, drop, is_own_group, read_documents, through_steps
from data_prep.steps import clean_steps, shape_steps
from data_prep.told import tell
from megatron_codemix.config import PrepConfig
from megatron_codemix.shards import document_id

_OPEN_CHUNKS = 256
DUPLICATE_STEP = "deduplicate"
DUPLICATE_REASONS = {1: "exact duplicate", 2: "near duplicate"}


@dataclass(frozen=True)
class ShardsTask:
    """A chunk and how to treat it; pickled to a worker."""

    source: str
    config: PrepConfig
    number: int
    input_bytes: int
    """For progress."""
    key: str
    """Of all settings; stands in the record."""
    record: Path
    train: Path
    chunk: Chunk | None = None
    """Read directly, or"""
    clean: CleanChunk | None = None
    """from the clean store, or"""
    groups: Path | None = None
    """from the clean store, group by group (data_prep/gather.py)."""
    stores: tuple[CleanChunk, ...] = ()
    """groups: the whole source's clean store."""


def chunk_documents(task: ShardsTask, counts: Counts, drops: DropsWriter, ids: list[int]) -> Iterator[tuple[Document, int, int]]:
    """(document as it is trained on, its UTF-8 bytes, its `text_hash`) of all that a task's documents become.

    counts, drops: receive what is counted and recorded. ids: receives the id of each document that is read, where names may repeat.
    """
    spec, steps = task.config.sources[task.source], shape_steps(task.config, task.source)
    if task.chunk is not None:
        steps = clean_steps(task.config, task.source) + steps
        for read in read_documents(task.chunk, spec, counts):
            if spec.id_field is not None:
                ids.append(document_id(read.document.name))
            if not steps:
                yield read
                continue
            for document in through_steps(steps, read.document, counts):
                yield (document, read.num_bytes, read.text_hash) if document.text is read.document.text else _measured(document)
        return
    if task.groups is not None:
        yield from map(_measured, _gathered(task, steps, counts, drops))
        return
    assert task.clean is not None
    for document in _kept(task.clean, counts, drops):
        yield from map(_measured, through_steps(steps, document, counts))


def _measured(document: Document) -> tuple[Document, int, int]:
    encoded = document.text.encode("utf-8")
    return document, len(encoded), text_hash(encoded)


def _kept(clean: CleanChunk, counts: Counts, drops: DropsWriter) -> Iterator[Document]:
    """The documents of a clean chunk that are no duplicates."""
    index = clean.index
    for row, decision in enumerate(clean.decisions()):
        document = clean.document(row)
        tell(int(index["size"][row]), 1, int(index["num_bytes"][row]))
        if not _is_duplicate(document, decision, counts, drops):
            yield document
    clean.close()


def _is_duplicate(document: Document, decision: Any, counts: Counts, drops: DropsWriter) -> bool:
    """Whether a document was decided to be a duplicate; it is then counted and recorded."""
    if not decision["verdict"]:
        return False
    kept = int(decision["kept_instead"])
    drop(document, DUPLICATE_STEP, Drop(DUPLICATE_REASONS[int(decision["verdict"])], f"{kept:016x} stays"), counts.tally)
    drops.add(counts.tally.drops.pop(), kept)
    return True


def _gathered(task: ShardsTask, steps: list[Step], counts: Counts, drops: DropsWriter) -> Iterator[Document]:
    """The documents of some whole groups, shaped, in the order in which they are trained on."""
    spec = task.config.sources[task.source]
    settings = spec.shape.repositories
    assert task.groups is not None and settings is not None
    arrange = importlib.import_module("data_prep.repositories").arrange  # brings the grammars: only where asked for
    decisions: dict[int, np.ndarray] = {}

    def shape(document: Document) -> list[Document]:
        shaped = list(through_steps(steps, document, counts))
        counts.joined += len(shaped)
        return shaped

    for part, rows in group_parts(task.groups):
        documents: list[Document] = []
        for chunk, row, num_bytes in rows[["chunk", "row", "num_bytes"]].tolist():
            if chunk not in decisions:
                decisions[chunk] = task.stores[chunk].decisions()
            document = task.stores[chunk].document(row)
            tell(num_bytes, 1, num_bytes)
            if not _is_duplicate(document, decisions[chunk][row], counts, drops):
                documents.append(document)
        group = documents[0].group if documents else None
        if group is not None and is_own_group(group):
            documents = [replace(document, group=None) for document in documents]
        for document in arrange(documents, settings, spec.modality, shape):
            counts.joined -= 1
            yield replace(document, group=group, name=f"{document.name}~{part}" if part and settings.join else document.name)
        if len(decisions) > _OPEN_CHUNKS:
            decisions.clear()
            for store in task.stores:
                store.close()
