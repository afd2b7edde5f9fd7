"""One file of pieces: a safetensors file written as a stream, hashed on the way and read back before it counts.

The header's `__metadata__` says of every tensor which elements of which block it is, so a file is understood without the
layout that wrote it. Any reader of safetensors opens it; nothing in it can run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_codemix.errors import UserError
from megatron_codemix.files import atomic_file
from megatron_codemix.pieces.encoding import CHUNK_BYTES, LARGEST_HEADER, bytes_of, encode_header, encode_tensor
from megatron_codemix.pieces.piece import KINDS, Block, Piece

FORMAT, FORMAT_VERSION = "codemix pieces", "1"
_ELEMENT_BYTES = 4


@dataclass(frozen=True)
class FileDigest:
    """What was written, and found again on disk."""

    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the content."""


@dataclass(frozen=True)
class Span:
    """Elements start ≤ i < stop of a block, counted row-major: a piece without its data."""

    block: Block
    kind: str
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """Elements of the span."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole tensor of the model."""
        return self.block.size == self.block.shape and self.num_elements == self.block.num_elements


@dataclass(frozen=True)
class StoredSpan:
    """A span and where its data lies."""

    span: Span
    path: Path
    offset: int
    """Bytes from the start of the file."""


Beat = Callable[[], None]
"""Called for every few MiB that were written or read, so that whoever waits can tell a slow disk from a dead one."""


def _silent() -> None:
    pass


def write_pieces(path: Path, pieces: Sequence[Piece], step: int, beat: Beat = _silent) -> FileDigest:
    """Write one rank's pieces (possibly none) into the new file `path`; safe to call in a thread of its own.

    No second copy is made in memory: at most 8 MiB at a time leave a GPU. step: optimizer updates done. Raises OSError
    when the disk refuses, or gives back something else than was written; then no file appears.
    """
    spans = [Span(piece.block, piece.kind, piece.start, piece.stop) for piece in pieces]
    return write_spans(path, spans, (piece.data for piece in pieces), step, beat)


def write_spans(path: Path, spans: Sequence[Span], data: Iterable[Tensor], step: int, beat: Beat = _silent) -> FileDigest:
    """As `write_pieces`, with the data of all spans end to end as a stream of fp32 (n,) tensors, cut anywhere."""
    header = _header(spans, step)
    digest = hashlib.sha256(header)
    size = len(header)
    with atomic_file(path) as handle:
        handle.write(header)
        for chunk in _chunks(data):
            handle.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            beat()
        assert size == len(header) + _ELEMENT_BYTES * sum(span.num_elements for span in spans), "the stream is not the spans'"
        handle.flush()
        os.fsync(handle.fileno())
        _verify(Path(handle.name), digest.hexdigest(), beat)
    return FileDigest(size, digest.hexdigest())


def _chunks(data: Iterable[Tensor]) -> Iterator[memoryview]:
    for tensor in data:
        assert tensor.dtype == torch.float32 and tensor.ndim == 1, f"pieces are fp32 (n,), not {tensor.dtype} {tuple(tensor.shape)}"
        yield from encode_tensor(tensor)


def _verify(path: Path, expected: str, beat: Beat = _silent) -> None:
    """Read a file back, from the disk rather than from memory where the system allows it."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        _forget_pages(handle.fileno())
        buffer = bytearray(CHUNK_BYTES)
        while count := handle.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            beat()
        _forget_pages(handle.fileno())  # nobody reads it again soon; the shards' pages are wanted
    if digest.hexdigest() != expected:
        raise OSError(errno.EIO, "what lies on the disk is not what was written; check the disk", str(path))


def _forget_pages(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        with suppress(OSError):  # advice, which some file systems do not take
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _header(spans: Sequence[Span], step: int) -> bytes:
    tensors: dict[str, tuple[torch.dtype, Sequence[int]]] = {}
    entries = []
    for span in spans:
        assert 0 <= span.start < span.stop <= span.block.num_elements and span.kind in KINDS, f"no piece: {span}"
        name = _name(span)
        assert name not in tensors, f"two pieces are one: {span}"
        # whole tensors have their shape, for whoever opens the file with safetensors alone
        tensors[name] = (torch.float32, span.block.shape if span.is_whole else (span.num_elements,))
        block = {"shape": span.block.shape, "offset": span.block.offset, "size": span.block.size}
        entries.append({"name": name, "key": span.block.key, "kind": span.kind, **block, "start": span.start, "stop": span.stop})
    pieces = json.dumps(entries, separators=(",", ":"))
    return encode_header(tensors, {"format": FORMAT, "format_version": FORMAT_VERSION, "step": str(step), "pieces": pieces})


def _name(span: Span) -> str:
    """Unique in a file: `param/KEY` of a whole tensor, else `param/KEY@OFFSET+START`."""
    whole = f"{span.kind}/{span.block.key}"
    return whole if span.is_whole else f"{whole}@{','.join(map(str, span.block.offset))}+{span.start}"


def read_spans(path: Path) -> tuple[int, list[StoredSpan]]:
    """The step of a file of pieces, and what it holds; no tensor is read, and the header is not trusted.

    Raises UserError for anything but a whole file of this format and version.
    """
    try:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            header, data_start = _read_header(handle, size)
        return _parse(path, header, data_start, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # whatever a damaged header leads to
        raise UserError(f"{path}: no readable file of pieces ({_reason(error)}); restore it, or choose another checkpoint") from None


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def _read_header(handle: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(handle.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise ValueError("truncated, or no safetensors file")
    header = json.loads(handle.read(length), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _parse(path: Path, header: dict[str, Any], data_start: int, size: int) -> tuple[int, list[StoredSpan]]:
    metadata = header.pop("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise ValueError("not written by codemix")
    if metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version {metadata['format_version']}, but this codemix reads {FORMAT_VERSION}")
    step = _count(int(metadata["step"]))
    stored = []
    end_of_data = 0
    for entry in json.loads(metadata["pieces"], object_pairs_hook=_without_duplicates):
        span = _span(entry)
        tensor = header.pop(_text(entry["name"]))
        begin, end = (_count(number) for number in tensor["data_offsets"])
        elements = math.prod(_count(number) for number in tensor["shape"])
        if tensor["dtype"] != "F32" or elements != span.num_elements or end - begin != _ELEMENT_BYTES * elements:
            raise ValueError(f"'{entry['name']}' is not the {span.num_elements} fp32 elements that it is said to be")
        if begin != end_of_data:
            raise ValueError(f"'{entry['name']}' does not lie where the one before it ends")
        end_of_data = end
        stored.append(StoredSpan(span, path, data_start + begin))
    if header:
        raise ValueError(f"holds '{next(iter(header))}', which is no piece")
    if size != data_start + end_of_data:
        raise ValueError(f"{size} bytes where {data_start + end_of_data} were written")
    return step, stored


def _span(entry: dict[str, Any]) -> Span:
    shape, offset, size = (tuple(_count(number) for number in entry[field]) for field in ("shape", "offset", "size"))
    block = Block(_text(entry["key"]), shape, offset, size)
    span = Span(block, _text(entry["kind"]), _count(entry["start"]), _count(entry["stop"]))
    inside = len(shape) == len(offset) == len(size) and all(o + s <= n for o, s, n in zip(offset, size, shape))
    if not inside or span.kind not in KINDS or not span.start < span.stop <= block.num_elements:
        raise ValueError(f"'{block.key}' is said to have a piece that it cannot have")
    return span


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a count belongs")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} where a name belongs")
    return value


def read_elements(stored: StoredSpan, start: int, out: Tensor) -> None:
    """Fill `out`, fp32 (n,) on the host, with the elements of a stored span from its `start`-th on.

    Raises UserError when the file has become shorter.
    """
    assert start >= 0 and start + len(out) <= stored.span.num_elements and out.is_contiguous() and out.dtype == torch.float32
    view = bytes_of(out.detach())
    position = stored.offset + _ELEMENT_BYTES * start
    try:
        descriptor = os.open(stored.path, os.O_RDONLY)
        try:
            while view:
                count = os.preadv(descriptor, [view], position)
                if not count:
                    raise UserError(f"{stored.path}: truncated; restore it, or choose another checkpoint")
                view, position = view[count:], position + count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{stored.path}: cannot be read ({error.strerror}); restore it, or choose another checkpoint") from None
