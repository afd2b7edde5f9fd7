"""How training reads its shards: the order of windows, who reads what, and the cache of shards that lie in a store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from megatron_codemix.config.section import Count, FilePath, Section

SCHEMES = ("file", "s3", "gs")


@dataclass(frozen=True)
class Url:
    """A folder of a store that is read through a cache: `file://`, `s3://`, `gs://`. Like a Path, `/` goes down."""

    text: str
    """Without a slash at its end."""

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def scheme(self) -> str:
        """What stands before '://'."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """Its last part."""
        return self.text.rpartition("/")[2]


def _place(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    scheme, found, rest = value.partition("://")
    if not found:
        return Path(value)
    if scheme not in SCHEMES:
        raise ValueError(f"'{scheme}://' is no store that shards are read from; write a path, file://, s3:// or gs://")
    if not re.fullmatch(r"/[^?#]+" if scheme == "file" else r"[^/?#\s][^?#]*", rest):
        raise ValueError("not an address of a folder; write file:///absolute/path or s3://bucket/folder, without '?' and '#'")
    return Url(f"{scheme}://{rest.rstrip('/')}")


DataPath = Annotated[Path | Url, BeforeValidator(_place), PlainSerializer(str, return_type=str)]
"""A folder of shards: a path (relative ones are taken from the working directory), or an address of a store."""


class CacheConfig(Section):
    """Where a node keeps shards of file://, s3:// and gs:// sources while it reads them."""

    folder: FilePath
    """Folder on a disk of the node, shared by its processes; runs may share it."""
    bytes: Count
    """Most bytes of shards that lie there at a time."""
    fetches: Count = 4
    """Shards that one process fetches at a time."""
    attempts: Count = 5
    """How often a shard is tried before training ends; waits of 1, 2, 4 … seconds lie between."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """A store from which nothing has come for so long is taken to stall: that counts as a failed attempt."""


class DataConfig(Section):
    """How shards are read. Neither changes what a run is asked to read: shares, epochs, and every window once per epoch."""

    order: Literal["global", "blocks"] = "global"
    """global: windows of a source permuted over all of it; blocks: shards permuted, and windows inside `block_shards` shards at a time."""
    block_shards: Count = 4
    """For the order blocks: shards that a source's windows come from at a time."""
    assignment: Literal["order", "shard"] = "order"
    """order: windows of a global batch go to data-parallel ranks in turn; shard: grouped by shard, so that a rank reads few of them."""
    cache: CacheConfig | None = None
    """The cache of shards in a store; needed where a source's path is an address."""


def data_problems(raw: dict[str, Any]) -> list[str]:
    """Mistakes between `data` and the sources of a raw run config."""
    sources = raw.get("sources") if isinstance(raw.get("sources"), dict) else {}
    data = raw.get("data") if isinstance(raw.get("data"), dict) else {}
    problems = []
    for name, source in (sources or {}).items():
        path = source.get("path") if isinstance(source, dict) else None
        if ("://" in path if isinstance(path, str) else isinstance(path, Url)) and not (data or {}).get("cache"):
            problems.append(f"sources.{name}.path: {path} is read through a cache; set data.cache.folder and data.cache.bytes")
    return problems
