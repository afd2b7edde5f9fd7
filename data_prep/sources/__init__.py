"""A prep file's source → its documents, by kind.

Nothing of what is read is imported, run or written anywhere: links are not followed out of a repository, a folder of files or
a tar, and every reader works in memory bounded by `oversized_bytes`, whatever the input's size.
"""

from __future__ import annotations

from data_prep.documents import Source
from data_prep.sources.files import FilesSource
from data_prep.sources.jsonl import JsonlSource
from data_prep.sources.stdlib import StdlibSource
from megatron_codemix.config import SourceSpec

__all__ = ["open_source"]

_KINDS = {"jsonl": JsonlSource, "files": FilesSource, "stdlib": StdlibSource}


def open_source(name: str, spec: SourceSpec, *, with_fields: bool = False) -> Source:
    """The reader of one source. Its `inputs()` raises UserError where files are missing.

    with_fields: whether documents carry their row's other fields, which some steps ask for (`steps.needs_fields`).
    """
    return _KINDS[spec.kind](name, spec, with_fields)
