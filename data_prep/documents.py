"""What a source yields: documents, and units of work that a worker process turns into documents.

A unit is small to send (bytes of whole lines, or paths) and says nothing about workers, so the order and the
content of the documents do not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_codemix.errors import UserError

_WHITESPACE = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True, slots=True)
class Document:
    """One document as its source gives it."""

    name: str
    """Stable name within the source; `document_id` is its hash."""
    text: str
    group: str | None = None
    """What keeps documents together in one split; None: the document's own text."""
    language: str | None = None
    license: str | None = None


@dataclass(slots=True)
class Tally:
    """What a unit's reading counted besides its documents."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Reason → documents left out."""


class Unit(Protocol):
    """A piece of a source: pickled to a worker, read there."""

    input_bytes: int
    """Bytes of input files it stands for, for the progress line."""

    def documents(self, tally: Tally) -> Iterator[Document]:
        """Its documents in order. Raises UserError for bad input."""
        ...


class Source(Protocol):
    """Where units come from."""

    def inputs(self) -> list[tuple[str, int]]:
        """(name, size in bytes) of every input file, in order; raises UserError when there is none."""
        ...

    def units(self) -> Iterator[Unit]:
        """All units, in order."""
        ...


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
    """Whether `group` falls in the held-out split: a keyed hash below `fraction`; the same in every source."""
    digest = hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def unique_names(paths: list[tuple[Path, Path]]) -> list[str]:
    """Source-relative names of (root, file) pairs, each file once: relative to its root, or where two would share a
    name, all relative to the folder that holds all of them. Bytes that are no UTF-8 are written `\\xff`."""
    names = [file.name if root == file else file.relative_to(root).as_posix() for root, file in paths]
    if len(set(names)) < len(names):
        absolute = [Path(os.path.abspath(file)) for _, file in paths]
        common = os.path.commonpath([file.parent for file in absolute])
        names = [file.relative_to(common).as_posix() for file in absolute]
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]


def each_once(source: str, paths: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """The (root, file) pairs of a source as they are; raises UserError for a file that its paths name twice."""
    seen: set[str] = set()
    for _, file in paths:
        place = os.path.abspath(file)
        if place in seen:
            raise UserError(f"sources.{source}.paths: {file} is named twice, so its documents would be too; name each file and folder once")
        seen.add(place)
    return paths
