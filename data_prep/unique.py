"""Whether each document of a source has a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.dedup import ExternalSort
from data_prep.documents import Tally
from data_prep.sources import names_may_repeat
from data_prep.stages import Job
from megatron_codemix.errors import UserError
from megatron_codemix.shards import document_id


def check_names(job: Job, folders: Sequence[tuple[int, Path]]) -> None:
    """Raises UserError when two documents of a source share a name. Memory is bounded.

    folders: (chunk, folder with ids.npy) of all that was read of it.
    """
    if not names_may_repeat(job.config.sources[job.name]):
        return
    dtype = np.dtype([("id", "<u8"), ("chunk", "<u4")])
    with ExternalSort(job.work / "names", dtype, ["id"]) as rows:
        for number, folder in folders:
            ids = np.load(folder / "ids.npy", allow_pickle=False)
            block = np.empty(ids.size, dtype)
            block["id"], block["chunk"] = ids, number
            rows.add(block)
        last = np.empty(0, dtype)
        for block in rows.blocks():
            together = np.concatenate([last, block])
            places = np.flatnonzero(together["id"][1:] == together["id"][:-1])
            if places.size:
                row = together[places[0]]
                raise _repeated(job, int(row["id"]), int(row["chunk"]))
            last = together[-1:]


def _repeated(job: Job, identity: int, chunk: int) -> UserError:
    names = (document.name for document in job.chunks[chunk].documents(Tally(), lambda num_bytes: None))
    name = next((name for name in names if document_id(name) == identity), f"{identity:016x}")
    if job.config.sources[job.name].id_field is None:
        return UserError(
            f"sources.{job.name}: several samples are named '{name}' (a key that comes again behind other samples); "
            "make that tar anew, or name an id_field"
        )
    return UserError(
        f"sources.{job.name}.id_field: several documents are named '{name}'; name a field that tells them apart, "
        "give group_field (names then begin with the group), or leave id_field out"
    )
