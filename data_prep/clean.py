"""A chunk → its clean documents on disk, for what must see all documents."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.arrays import save_array
from data_prep.clean_store import CleanWriter
from data_prep.documents import Chunk, text_hash
from data_prep.drops import DROPS_NAME, DropsWriter
from data_prep.parts import input_record
from data_prep.pipeline import Counts, Division, read_documents, through_steps
from data_prep.sources import names_may_repeat
from data_prep.split_keys import LeastKeys
from data_prep.stages import RECORD_NAME
from data_prep.steps import clean_steps
from megatron_codemix.config import PrepConfig
from megatron_codemix.config.prep_steps import NearDuplicates
from megatron_codemix.files import atomic_directory, write_json
from megatron_codemix.shards import document_id


@dataclass(frozen=True)
class CleanTask:
    """A chunk and how to clean it; pickled to a worker."""

    source: str
    config: PrepConfig
    number: int
    input_bytes: int
    chunk: Chunk
    folder: Path
    key: str
    near: NearDuplicates | None
    """Sign documents for these; None: no signatures."""


def clean_chunk(task: CleanTask) -> dict[str, Any]:
    """Write the clean documents of a chunk and, last, its record; returns the record. Raises UserError for bad input."""
    spec = task.config.sources[task.source]
    steps = clean_steps(task.config, task.source)
    # brings what is only needed here
    signer = importlib.import_module("data_prep.dedup.signature").Signer(task.near) if task.near is not None else None
    counts = Counts()
    ids: list[int] = []
    division, held_out = Division(task.config.split.validation, task.config.split.seed), 0
    groups = LeastKeys()
    shutil.rmtree(task.folder, ignore_errors=True)
    with atomic_directory(task.folder) as folder:
        with DropsWriter(folder / DROPS_NAME) as drops, CleanWriter(folder) as store:
            for read in read_documents(task.chunk, spec, counts):
                if names_may_repeat(spec):
                    ids.append(document_id(read.document.name))
                for document in through_steps(steps, read.document, counts):
                    encoded = document.text.encode("utf-8")
                    signature = signer.sign(document.text) if signer is not None else None
                    store.add(document, len(encoded), text_hash(encoded), signature)
                    held_out += division.held_out(document, groups)
                drops.add_all(counts.tally.drops)
                counts.tally.drops.clear()
            record = {
                "key": task.key,
                "inputs": input_record(task.chunk),
                "documents": len(store),
                "held_out": held_out,
                "least_split_keys": groups.sorted(),
                "text_bytes": store.text_bytes,
                "counts": counts.as_json(),
            }
        if names_may_repeat(spec):
            save_array(folder / "ids.npy", np.array(ids, np.uint64))
        write_json(folder / RECORD_NAME, record)
    return record
