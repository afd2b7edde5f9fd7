"""The splits of a run for all of its processes: what one reads for the others, and the node's cache."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_codemix.config import RunConfig, Url
from megatron_codemix.errors import UserError
from megatron_codemix.shards import ShardCache, SplitFiles, SplitReader, files_of, most_of_shards

SmallFiles = Mapping[tuple[str, str], SplitFiles]
"""(source, split) → what one process has read of it for all."""


def small_files(config: RunConfig, readers: Mapping[str, SplitReader], validation: Mapping[str, SplitReader]) -> SmallFiles:
    """What other processes need to open the same splits without reading manifests, nor the sidecars of a store."""
    splits = {(name, config.sources[name].train_split): reader for name, reader in readers.items()}
    splits |= {(name, str(config.sources[name].validation_split)): reader for name, reader in validation.items()}
    return {key: files_of(reader) for key, reader in splits.items()}


def open_cache(config: RunConfig) -> ShardCache | None:
    """The node's cache, where a source lies in a store. Raises UserError where its folder cannot be used."""
    stored = any(isinstance(source.path, Url) for source in config.sources.values())
    return ShardCache(config.data.cache) if stored and config.data.cache is not None else None


def require_room(config: RunConfig, readers: Mapping[str, SplitReader], validation: Mapping[str, SplitReader]) -> None:
    """Raises UserError for a cache that cannot hold what is read at a time: two blocks of each source (in the global order all of
    it), and all of the validation splits, which stay."""
    data = config.data
    if data.cache is None:
        return
    least = 0
    for reader in (one for one in validation.values() if one.place.in_store):
        least += most_of_shards(reader.manifest, len(reader.manifest.shards))
        for shard in range(len(reader.manifest.shards)):
            reader.place.want(shard, 0)
    blocks = data.order == "blocks"
    for reader in (one for one in readers.values() if one.place.in_store):
        least += most_of_shards(reader.manifest, 2 * data.block_shards if blocks else len(reader.manifest.shards))
    if least > data.cache.bytes:
        what = f"two blocks of {data.block_shards} shards" if blocks else "all shards, which the order 'global' reads at a time,"
        remedy = "lower data.block_shards" if blocks else "set data.order to 'blocks'"
        raise UserError(
            f"data.cache.bytes: {data.cache.bytes:,} are too few: {what} of each source in a store, and the validation splits, "
            f"take {least:,}; raise it, or {remedy}"
        )
