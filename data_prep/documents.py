"""What a source yields: documents, in chunks that a worker process reads by itself; and what a step does to a document.

Chunks follow from the names and sizes of the inputs alone, so the order and the content of the documents, and the
shards made of them, do not depend on how many workers or tasks there are.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind

_WHITESPACE = b" \t\n\r\x0b\x0c"
_LEAST_CHUNK, _MOST_CHUNK, _CHUNKS = 16 << 20, 256 << 20, 32

OPTIONAL_FIELDS = ("path_field", "language_field", "license_field")
"""Settings of sources that name a field of rows without which a row is a document all the same."""

Segment = tuple[int, Kind]
"""(offset of its first UTF-8 byte in the text, kind); it reaches to the next one. A document's first starts at 0."""

InputStamp = tuple[tuple[str, int, int], ...]
"""(name, size in bytes, time of the last change in ns) of files as they were listed, each once: changes when a file is replaced or
written to, even by one of equal size."""


class Symbol(NamedTuple):
    """A control symbol that stands before the byte at `offset` of a text (or behind its last one)."""

    offset: int
    name: str
    """One of `tokenizer.symbols.RESERVED`."""
    kind: Kind
    """Segment kind of the symbol's token."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as its source gives it, or as steps left it."""

    name: str
    """Stable name within the source; `document_id` is its hash."""
    text: str
    group: str | None = None
    """What keeps documents together in one split; None: the document's own text."""
    language: str | None = None
    license: str | None = None
    path: str | None = None
    """Its path in its repository or folder."""
    segments: tuple[Segment, ...] | None = None
    """None: all of it is of the source's modality."""
    symbols: tuple[Symbol, ...] = ()
    """In the order of their offsets."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, for steps that ask for them by `needs_fields`; empty where none does."""


class Drop(NamedTuple):
    """Why a step left a document out."""

    reason: str
    """A few words, the same for all documents of this kind: it is counted."""
    detail: str = ""
    """What was seen in this document ('mean line length 213')."""


class DropRecord(NamedTuple):
    """A document that was left out, for `codemix prep why`."""

    name: str
    step: str
    reason: str
    detail: str
    excerpt: str
    """Its beginning."""


@dataclass(slots=True)
class Tally:
    """What was counted besides the documents that came out."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Reading: reason → documents left out."""
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(step, reason) → documents."""
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(step, what) → how often: masked addresses, removed lines …"""
    drops: list[DropRecord] = field(default_factory=list)
    """Every document in `dropped`."""
    found: Counter[str] = field(default_factory=Counter)
    """Of OPTIONAL_FIELDS those that a row had → chunks."""

    def left_out(self) -> dict[str, int]:
        """Reason of reading, or 'step: reason' → documents left out."""
        return {**self.skipped, **{f"{step}: {reason}": count for (step, reason), count in self.dropped.items()}}


class Step(Protocol):
    """Something done to each document, in a worker process. Made there from its settings; keeps no state between documents."""

    name: str
    """As in the prep file: 'text_quality'."""

    def apply(self, document: Document, tally: Tally) -> Document | Drop | Sequence[Document]:
        """The document, changed or not (changes counted in `tally.changed`); a Drop (the caller counts it); or what it was
        divided into."""
        ...


class Chunk(Protocol):
    """A piece of a source: small, pickled to a worker, read there."""

    input_bytes: int
    """Bytes of input files it stands for, for the progress line."""
    input_stamp: InputStamp
    """Of each file it reads. Belongs in no key: copies of equal files have other times. () where its inputs cannot change."""

    def documents(self, tally: Tally, moved: Callable[[int], None] = ...) -> Iterator[Document]:
        """Its documents in order, in bounded memory. moved: told how many more bytes of input were read.

        Raises UserError for bad input that is not counted in `tally.skipped`.
        """
        ...


class Source(Protocol):
    """Where chunks come from."""

    def inputs(self) -> list[tuple[str, int]]:
        """(name, size in bytes) of every input, in order; raises UserError when there is none. Changes when the content is known
        to have changed (a commit, a revision)."""
        ...

    def chunks(self) -> Sequence[Chunk]:
        """All chunks, in order: a function of `inputs()` and the settings, never of the machine."""
        ...


def chunk_bytes(total: int) -> int:
    """Bytes of uncompressed input that make a chunk of a source of `total` bytes: 16 to 256 MiB, so that there is work for
    many workers and shards do not become tiny."""
    return min(max(total // _CHUNKS, _LEAST_CHUNK), _MOST_CHUNK)


def cut(text: str, max_bytes: int | None) -> tuple[str, bytes]:
    """A text and its UTF-8, cut at a character boundary where it has more than `max_bytes` bytes.

    What is held out depends on the text, so whoever divides documents must cut them by this function.
    """
    encoded = text.encode("utf-8")
    if max_bytes is None or len(encoded) <= max_bytes:
        return text, encoded
    text = encoded[:max_bytes].decode("utf-8", errors="ignore")
    return text, text.encode("utf-8")


def text_hash(encoded: bytes) -> int:
    """64-bit hash of a UTF-8 text without its ASCII whitespace: equal for texts that differ in layout alone."""
    bare = encoded.translate(None, _WHITESPACE)
    return int.from_bytes(hashlib.blake2b(bare, digest_size=8).digest(), "big")


def is_held_out(group: str, seed: int, fraction: float) -> bool:
    """Whether `group` falls in the held-out split: `split_key` below `fraction` · 2^64; the same in every source."""
    return split_key(group, seed) < fraction * 2**64


def split_key(group: str, seed: int) -> int:
    """The 64-bit keyed hash that decides about a group's split."""
    digest = hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def unique_names(paths: list[tuple[Path, Path]]) -> list[str]:
    """Source-relative names of (root, file) pairs, each file once: relative to its root, or where two would share a
    name, all relative to the folder that holds all of them; in Unicode (`unicode_path`)."""
    names = [file.name if root == file else file.relative_to(root).as_posix() for root, file in paths]
    if len(set(names)) < len(names):
        absolute = [Path(os.path.abspath(file)) for _, file in paths]
        common = os.path.commonpath([file.parent for file in absolute])
        names = [file.relative_to(common).as_posix() for file in absolute]
    return [unicode_path(os.fsencode(name)) for name in names]


def unicode_path(path: bytes) -> str:
    """A path as text, different for different paths: itself where it is UTF-8; else behind '//', with bytes that are no UTF-8 as
    `\\xff` and backslashes doubled."""
    if not path.startswith(b"//"):
        try:
            return path.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return "//" + path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def each_once(source: str, paths: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """The (root, file) pairs of a source as they are; raises UserError for a file that its paths name twice."""
    seen: set[str] = set()
    for _, file in paths:
        place = os.path.abspath(file)
        if place in seen:
            raise UserError(f"sources.{source}.paths: {file} is named twice, so its documents would be too; name each file and folder once")
        seen.add(place)
    return paths
