"""A prep file's source → its documents, by kind.

Nothing of what is read is imported, run or written anywhere: links are not followed out of a repository, a folder of files or
a tar, and readers work in memory bounded by `oversized_bytes`, whatever the input's size.
"""

from __future__ import annotations

import importlib

from data_prep.documents import Source
from megatron_codemix.config import SourceSpec

__all__ = ["names_may_repeat", "open_source"]

# kind → module:class, imported when asked for: some bring large libraries along
_KINDS = {
    "jsonl": "jsonl:JsonlSource",
    "parquet": "parquet:ParquetSource",
    "huggingface": "huggingface:HuggingFaceSource",
    "files": "files:FilesSource",
    "git": "git:GitSource",
    "webdataset": "webdataset:WebdatasetSource",
    "stdlib": "stdlib:StdlibSource",
}


def open_source(name: str, spec: SourceSpec, *, with_fields: bool = False) -> Source:
    """The reader of one source. Its `inputs()` raises UserError where files are missing.

    with_fields: whether documents carry their row's other fields, which some steps ask for (`steps.needs_fields`).
    """
    module, reader = _KINDS[spec.kind].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), reader)(name, spec, with_fields)


def names_may_repeat(spec: SourceSpec) -> bool:
    """Whether two documents of a source may come with one name: ids are the data's own, and so are the keys of a tar. All other names
    are places, and differ."""
    return spec.id_field is not None or spec.kind == "webdataset"
