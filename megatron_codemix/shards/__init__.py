"""The shard format (docs/formats.md, docs/shards.md): writer, reader and verification side by side.

Shards are plain webdataset tars whose arrays are read in place; a split is a folder of them with a manifest.
"""

from megatron_codemix.shards.cache import ShardCache
from megatron_codemix.shards.layout import (
    FORMAT_VERSION,
    MODALITY_KINDS,
    TEXT_KINDS,
    Kind,
    Modality,
    TokenDtype,
    document_id,
    index_name,
    token_dtype_for,
)
from megatron_codemix.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, ShardInfo
from megatron_codemix.shards.reader import Document, Pack, SplitReader
from megatron_codemix.shards.remote import SplitFiles, files_of, load_manifest, most_of_shards, open_split
from megatron_codemix.shards.split import SplitWriter, begin_split, is_split, write_manifest
from megatron_codemix.shards.verify import verify_split
from megatron_codemix.shards.writer import ShardWriter

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "MODALITY_KINDS",
    "TEXT_KINDS",
    "Document",
    "Kind",
    "Manifest",
    "Modality",
    "Pack",
    "ShardCache",
    "ShardEntry",
    "ShardInfo",
    "ShardWriter",
    "SplitFiles",
    "SplitReader",
    "SplitWriter",
    "TokenDtype",
    "begin_split",
    "document_id",
    "files_of",
    "index_name",
    "is_split",
    "load_manifest",
    "most_of_shards",
    "open_split",
    "token_dtype_for",
    "verify_split",
    "write_manifest",
]
