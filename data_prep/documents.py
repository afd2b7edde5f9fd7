"""What a source yields: documents, and units of work that a worker process turns into documents.

A unit is small to send (bytes of whole lines, or paths) and says nothing about workers, so the order and the
content of the documents do not depend on how many there are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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


def text_hash(encoded: bytes) -> int:
    """64-bit hash of a UTF-8 text without its ASCII whitespace: equal for texts that differ in layout alone."""
    bare = encoded.translate(None, _WHITESPACE)
    return int.from_bytes(hashlib.blake2b(bare, digest_size=8).digest(), "big")


def is_held_out(group: str, seed: int, fraction: float) -> bool:
    """Whether `group` falls in the held-out split: a keyed hash below `fraction`; the same in every source."""
    digest = hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def unique_names(paths: list[tuple[Path, Path]]) -> list[str]:
    """Source-relative names of (root, file) pairs: relative to the root, unless two files would share a name."""
    names = [file.name if root == file else file.relative_to(root).as_posix() for root, file in paths]
    if len(set(names)) == len(names):
        return names
    return [file.as_posix() for _, file in paths]
