"""Everything that can be checked about a split without its tokenizer: checksums first, then what they cover."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from megatron_codemix.errors import UserError
from megatron_codemix.shards.index import sidecar_rows
from megatron_codemix.shards.layout import BLOCK, DOCUMENT_DTYPE, SEGMENT_DTYPE, Kind, index_name
from megatron_codemix.shards.manifest import Manifest, ShardEntry
from megatron_codemix.shards.mapping import map_now
from megatron_codemix.shards.places import shard_file, sidecar_content

_CHUNK_BYTES = 1 << 22
_Counts = Counter[tuple[str, str]]


class _Broken(Exception):
    """What is wrong inside a shard; ends the check of that shard."""


def verify_split(folder: Path, on_bytes: Callable[[int], None] | None = None) -> list[str]:
    """Problems of a split, each a line that names the file; an empty list means that it is whole.

    Checks the manifest; size and sha256 of every shard and sidecar; that no shard lies there unlisted; every
    tar header, array header and sidecar row; that documents tile each pack, end with the end-of-text id and
    hold it nowhere else; that tokens are below vocab_size and kinds are known; every count against every other.
    One problem is reported per shard. on_bytes: told the bytes of each stretch checked (their sum: the shards' sizes).
    """
    folder = Path(folder)
    try:
        manifest = Manifest.load(folder)
    except UserError as error:
        return list(error.problems)
    listed = {name for entry in manifest.shards for name in (entry.name, index_name(entry.name))}
    present = {path.name for pattern in ("shard-*.tar", "shard-*.index.npy") for path in folder.glob(pattern)}
    problems = [f"{folder / name}: not listed in the manifest; remove it" for name in sorted(present - listed)]
    counts: _Counts = Counter()
    broken = False
    for entry in manifest.shards:
        try:
            _verify_shard(folder, manifest, entry, counts, on_bytes or (lambda amount: None))
        except UserError as error:
            broken = True
            problems += error.problems
        except _Broken as error:
            broken = True
            problems.append(f"{error}; restore it, or make the split anew with 'codemix prep shards'")
    for name in ("languages", "licenses"):
        found = {key: count for (field, key), count in counts.items() if field == name}
        if not broken and found != getattr(manifest, name):
            problems.append(f"{folder}: {name} in the manifest differ from those of the packs; make the split anew")
    return problems


def _verify_shard(folder: Path, manifest: Manifest, entry: ShardEntry, counts: _Counts, on_bytes: Callable[[int], None]) -> None:
    path = folder / entry.name
    file, rows = shard_file(folder, entry), sidecar_rows(sidecar_content(folder, entry), folder, entry, manifest.dtype.itemsize)
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    if digest.hexdigest() != entry.sha256:
        raise _Broken(f"{path}: altered (its sha256 is not the manifest's)")
    shard = map_now(file)
    members = _members(shard, path)
    num_bytes = 0
    for number, row in enumerate(rows):
        where = f"{path}: pack {number}"
        num_bytes += _verify_pack(shard, members, row, manifest, where, counts)
    extra = next(members, None)
    if extra is not None:
        raise _Broken(f"{path}: member {extra[0]} is in no pack of the sidecar")
    if num_bytes != entry.num_bytes:
        raise _Broken(f"{path}: its documents have {num_bytes} bytes, the manifest says {entry.num_bytes}")


def _members(shard: mmap.mmap, path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the members of a plain ustar file, headers checked."""
    offset = 0
    while True:
        header = shard[offset : offset + BLOCK]
        if len(header) == BLOCK and not any(header):
            return
        try:
            if len(header) < BLOCK or header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
                raise ValueError("not a plain file")
            if int(header[148:156].strip(b"\0 "), 8) != sum(header) - sum(header[148:156]) + 8 * 32:
                raise ValueError("wrong header checksum")
            name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].strip(b"\0 "), 8)
        except ValueError as error:
            raise _Broken(f"{path}: no tar header at byte {offset} ({error})") from None
        yield name, offset + BLOCK, size
        offset += BLOCK + -(-size // BLOCK) * BLOCK


def _verify_pack(
    shard: mmap.mmap, members: Iterator[tuple[str, int, int]], row: np.void, manifest: Manifest, where: str, counts: _Counts
) -> int:
    """Check one webdataset sample against its row of the sidecar; returns the bytes of its documents."""
    names = [("tokens", manifest.dtype), ("documents", DOCUMENT_DTYPE)]
    if row["num_segments"]:
        names.append(("segments", SEGMENT_DTYPE))
    arrays: dict[str, np.ndarray] = {}
    key = None
    for name, dtype in names:
        member, offset, size = next(members, ("(none)", 0, 0))
        key = key if key is not None else member.removesuffix(".tokens.npy")
        if member != f"{key}.{name}.npy":
            raise _Broken(f"{where}: expected its {name} array, found member {member}")
        arrays[name] = _array(shard, offset, size, dtype, row, name, where)
    member, offset, size = next(members, ("(none)", 0, 0))
    if member != f"{key}.json":
        raise _Broken(f"{where}: expected {key}.json, found member {member}")
    _verify_tokens(arrays["tokens"], arrays["documents"], manifest, where)
    if "segments" in arrays:
        starts, kinds = arrays["segments"]["token_start"], arrays["segments"]["kind"]
        if starts[0] != 0 or np.any(starts[1:] <= starts[:-1]) or starts[-1] >= arrays["tokens"].size:
            raise _Broken(f"{where}: its segments do not cover it from 0 in ascending order")
        if int(kinds.max()) > max(Kind):
            raise _Broken(f"{where}: segment kind {int(kinds.max())} is unknown")
    return _verify_json(shard[offset : offset + size], arrays, where, counts)


def _array(shard: mmap.mmap, offset: int, size: int, dtype: np.dtype, row: np.void, name: str, where: str) -> np.ndarray:
    """The array of a member, its header and its sidecar entry compared."""
    stream = io.BytesIO(shard[offset : offset + min(size, 4096)])
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not npy version 1.0")
        shape, fortran_order, found = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise _Broken(f"{where}: its {name} array has no valid header ({error})") from None
    data = offset + stream.tell()
    if found != dtype or len(shape) != 1 or fortran_order or stream.tell() + shape[0] * dtype.itemsize != size:
        raise _Broken(f"{where}: its {name} array is {found}{list(shape)} in {size} bytes, not 1-d {dtype}")
    if (data, shape[0]) != (int(row[f"{name}_offset"]), int(row[f"num_{name}"])):
        raise _Broken(f"{where}: the sidecar has its {name} at another place or length")
    return np.ndarray(shape, dtype, buffer=shard, offset=data)


def _verify_tokens(tokens: np.ndarray, documents: np.ndarray, manifest: Manifest, where: str) -> None:
    starts = documents["token_start"].astype(np.int64)
    if starts[0] != 0 or np.any(starts[1:] <= starts[:-1]) or starts[-1] >= tokens.size:
        raise _Broken(f"{where}: its documents do not cover it from 0 in ascending order")
    ends = np.append(starts[1:], tokens.size) - 1
    if not np.array_equal(np.flatnonzero(tokens == manifest.end_of_text_id), ends):
        raise _Broken(f"{where}: the end-of-text id {manifest.end_of_text_id} does not stand exactly at the end of each document")
    if int(tokens.max()) >= manifest.vocab_size:
        raise _Broken(f"{where}: token {int(tokens.max())} is not below vocab_size {manifest.vocab_size}")


def _verify_json(content: bytes, arrays: dict[str, np.ndarray], where: str, counts: _Counts) -> int:
    num_bytes = int(arrays["documents"]["num_bytes"].sum())
    expected = {"num_tokens": arrays["tokens"].size, "num_documents": arrays["documents"].size, "num_bytes": num_bytes}
    try:
        stated = json.loads(content)
        differing = [name for name, value in expected.items() if stated[name] != value]
        for field in ("languages", "licenses"):
            counts.update({(field, key): int(count) for key, count in stated[field].items()})
            if sum(stated[field].values()) > arrays["documents"].size:
                differing.append(field)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Broken(f"{where}: its json member cannot be read ({error!r})") from None
    if differing:
        raise _Broken(f"{where}: its json member contradicts its arrays in {', '.join(differing)}")
    return num_bytes
