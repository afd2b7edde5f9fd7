"""The documents of a chunk on their way to its shards: read, or taken from the clean store without duplicates, then shaped."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.clean_store import CleanChunk
from data_prep.documents import Chunk, Document, Drop, Step, text_hash
from data_prep.drops import DropsWriter
from data_prep.gather import group_parts
from data_prep.pipeline import Counts, drop, is_own_group, read_documents, through_steps
from data_prep.sources import names_may_repeat
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
    records: Path
    """Folder of the records of the source's shards."""
    train: Path
    chunk: Chunk | None = None
    """Read directly, or"""
    clean: CleanChunk | None = None
    """from the clean store, or"""
    groups: Path | None = None
    """from the clean store, group by group (data_prep/gather.py)."""
    stores: tuple[CleanChunk, ...] = ()
    """groups: the whole source's clean store."""


@dataclass
class Journal:
    """Receives what is counted and recorded on the way."""

    drops: DropsWriter | None = None
    counts: Counts = field(default_factory=Counts)
    ids: list[int] = field(default_factory=list)
    """Of each document that is read, where names may repeat."""


Ready = tuple[Document, int, int]
"""(document as it is trained on, its UTF-8 bytes, its `text_hash`)."""


def chunk_documents(task: ShardsTask, journal: Journal, passed: int) -> Iterator[Ready | None]:
    """All that a task's documents become; None behind each document of the chunk (where repositories are gathered, behind each of them).

    passed: so many of these are passed over: the first None then stands behind the last of them.
    """
    steps = shape_steps(task.config, task.source)
    if task.chunk is not None:
        return _read(task, task.chunk, clean_steps(task.config, task.source) + steps, journal, passed)
    if task.groups is not None:
        return _gathered(task, task.groups, steps, journal, passed)
    assert task.clean is not None
    return _kept(task.clean, steps, journal, passed)


def _read(task: ShardsTask, chunk: Chunk, steps: list[Step], journal: Journal, passed: int) -> Iterator[Ready | None]:
    spec, counts = task.config.sources[task.source], journal.counts
    for number, read in enumerate(read_documents(chunk, spec, counts), 1):
        if number < passed:
            continue
        if number > passed:
            if names_may_repeat(spec):
                journal.ids.append(document_id(read.document.name))
            if not steps:
                yield read
            for document in through_steps(steps, read.document, counts) if steps else ():
                yield (document, read.num_bytes, read.text_hash) if document.text is read.document.text else _measured(document)
        yield None


def _measured(document: Document) -> tuple[Document, int, int]:
    encoded = document.text.encode("utf-8")
    return document, len(encoded), text_hash(encoded)


def _kept(clean: CleanChunk, steps: list[Step], journal: Journal, passed: int) -> Iterator[Ready | None]:
    """The documents of a clean chunk that are no duplicates."""
    index, decisions = clean.index, clean.decisions()
    if passed:
        tell(int(index["size"][:passed].sum()))
        yield None
    for row in range(passed, index.size):
        document = clean.document(row)
        tell(int(index["size"][row]), 1, int(index["num_bytes"][row]))
        if not _is_duplicate(document, decisions[row], journal):
            yield from map(_measured, through_steps(steps, document, journal.counts))
        yield None
    clean.close()


def _is_duplicate(document: Document, decision: Any, journal: Journal) -> bool:
    """Whether a document was decided to be a duplicate; it is then counted and recorded."""
    if not decision["verdict"]:
        return False
    assert journal.drops is not None
    kept, tally = int(decision["kept_instead"]), journal.counts.tally
    drop(document, DUPLICATE_STEP, Drop(DUPLICATE_REASONS[int(decision["verdict"])], f"{kept:016x} stays"), tally)
    journal.drops.add(tally.drops.pop(), kept)
    return True


def _gathered(task: ShardsTask, groups: Path, steps: list[Step], journal: Journal, passed: int) -> Iterator[Ready | None]:
    """The documents of some whole groups, shaped, in the order in which they are trained on."""
    spec, counts = task.config.sources[task.source], journal.counts
    settings = spec.shape.repositories
    assert settings is not None
    arrange = importlib.import_module("data_prep.repositories").arrange  # brings the grammars: only where asked for
    decisions: dict[int, np.ndarray] = {}

    def shape(document: Document) -> list[Document]:
        shaped = list(through_steps(steps, document, counts))
        counts.joined += len(shaped)
        return shaped

    for number, (part, rows) in enumerate(group_parts(groups), 1):
        if number <= passed:
            tell(int(rows["num_bytes"].sum()))
            if number == passed:
                yield None
            continue
        documents: list[Document] = []
        for chunk, row, num_bytes in rows[["chunk", "row", "num_bytes"]].tolist():
            if chunk not in decisions:
                decisions[chunk] = task.stores[chunk].decisions()
            document = task.stores[chunk].document(row)
            tell(num_bytes, 1, num_bytes)
            if not _is_duplicate(document, decisions[chunk][row], journal):
                documents.append(document)
        group = documents[0].group if documents else None
        if group is not None and is_own_group(group):
            documents = [replace(document, group=None) for document in documents]
        for document in arrange(documents, settings, spec.modality, shape):
            counts.joined -= 1
            name = f"{document.name}~{part}" if part and settings.join else document.name
            yield _measured(replace(document, group=group, name=name))
        yield None
        if len(decisions) > _OPEN_CHUNKS:
            decisions.clear()
            for store in task.stores:
                store.close()
