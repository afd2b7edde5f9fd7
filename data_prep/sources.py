"""A prep file's source → its documents, by kind."""

from __future__ import annotations

from data_prep.documents import Source
from data_prep.jsonl import JsonlSource
from data_prep.stdlib import StdlibSource
from data_prep.text_files import FilesSource
from megatron_codemix.config import SourceSpec

_KINDS = {"jsonl": JsonlSource, "files": FilesSource, "stdlib": StdlibSource}


def open_source(name: str, spec: SourceSpec) -> Source:
    """The reader of one source. Its `inputs()` raises UserError where files are missing."""
    return _KINDS[spec.kind](name, spec)
