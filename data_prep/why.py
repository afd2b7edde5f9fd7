"""`codemix prep why OUTPUT DOCUMENT`: where a document is, or why it was left out.

codemix prep why OUTPUT repository/src/main.py     # by its name in its source
codemix prep why OUTPUT 9f86d081884c7d65           # by its id, as 'prep inspect' and 'prep drops' print it

Kept: split, shard, pack, tokens, segments, beginning. Left out: step, reason, what was seen. A duplicate: what was kept in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.clean_store import CleanChunk
from data_prep.documents import Document
from data_prep.drops import DropEntry, drop_files, read_source_drops
from data_prep.held_out import Aside
from data_prep.inspect import spans
from data_prep.stages import chunk_folders
from data_prep.verify import find_splits, load_tokenizer
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError, printable
from megatron_codemix.progress import progress
from megatron_codemix.shards import MANIFEST_NAME, Manifest, SplitReader, document_id
from megatron_codemix.tokenizer import Tokenizer

_BEGINNING = 200
"""Characters, and at the most so many tokens."""
_MOST_BYTES = 1 << 20
"""Places in a file at which a function may begin."""
_MOST_PARTS = 1 << 14
"""Documents that one repository may have become."""
_DEPTH = 3
"""A duplicate's duplicate is looked up so often: what stays is seldom itself left out, by a later step."""


class Search:
    """Looks for documents of one output. source: only in this one."""

    def __init__(self, output: Path, source: str | None = None) -> None:
        """Raises UserError where there is no such output or source."""
        self._output = Path(output)
        self._drops = drop_files(self._output)
        try:
            splits = [path for path in find_splits(self._output) if (path / MANIFEST_NAME).is_file()]
        except UserError:
            splits = []  # nothing is finished yet: what steps left out is there all the same
        self._splits = [(Manifest.load(path).source, path) for path in splits]
        self._source = source
        known = {name for name, _ in self._splits} | set(self._drops) | {name for name, _, _ in chunk_folders(self._output)}
        if source is not None and source not in known:
            raise UserError(f"--source {source}: no such source in {output}; there are: {', '.join(sorted(known)) or 'none'}")
        if not known:
            raise UserError(f"{output}: holds nothing that 'codemix prep' made; give its output")

    def lines(self, ids: set[int], depth: int = 0) -> Iterator[str]:
        """All that is known of the documents of these ids; nothing where they are unknown."""
        wanted = np.array(sorted(ids), np.uint64)
        found = [*self._kept(wanted), *self._left_out(ids, depth)]
        cleaned = list(self._cleaned(wanted))
        if not found:
            found = [line for source, document in cleaned for line in self._joined(source, document)]
        if not found:
            found = list(self._held_out_repeated(ids))
        if not depth:
            found += [_told(source, document) for source, document in cleaned]
        for line in found:
            yield "    " * depth + line

    def _here(self, source: str) -> bool:
        return self._source in (None, source)

    def _kept(self, wanted: np.ndarray) -> Iterator[str]:
        for source, split in self._splits:
            if self._here(source):
                for place in _places(split, wanted):
                    yield from place.lines()

    def _left_out(self, ids: set[int], depth: int) -> Iterator[str]:
        for source, paths in self._drops.items():
            if not self._here(source):
                continue
            for entry in read_source_drops(paths):
                if entry.document_id in ids:
                    yield from _left_out_lines(source, entry)
                    if entry.kept_instead is not None and depth < _DEPTH:
                        # what stays may lie in another source
                        instead = list(Search(self._output).lines({entry.kept_instead}, depth + 1))
                        yield "  kept in its place:"
                        yield from instead or [f"    {entry.kept_instead:016x}, of which nothing is known"]

    def _cleaned(self, wanted: np.ndarray) -> Iterator[tuple[str, Document]]:
        """(source, document) as stages keep them between them, with their names and origins, which shards do not hold."""
        for source, stage, folder in chunk_folders(self._output):
            if stage != "clean" or not self._here(source):
                continue
            chunk = CleanChunk(f"{source}/{folder.name}", folder, None)
            for row in np.flatnonzero(np.isin(chunk.index["document_id"], wanted)).tolist():
                yield source, chunk.document(row)
            chunk.close()

    def _joined(self, source: str, document: Document) -> Iterator[str]:
        """The document of a repository in which a file stands."""
        if document.group is None:
            return
        wanted = np.array(sorted(document_id(f"{document.group}#{number}") for number in range(_MOST_PARTS)), np.uint64)
        for known, split in self._splits:
            if known == source:
                for place in _places(split, wanted):
                    if place.text is not None and document.text.strip() in place.text:
                        yield f"{source}: joined with other files of {printable(document.group)}"
                        yield from place.lines()

    def divided(self, name: str, known: Callable[[str], bool]) -> Iterator[str]:
        """The pairs that a file was divided into: they are named FILE:BYTE. known: sources where it was found as a whole."""
        splits = [split for source, split in self._splits if self._here(source) and not known(source) and _makes_pairs(split)]
        ids = {document_id(f"{name}:{start}"): start for start in range(_MOST_BYTES if splits else 0)}
        wanted = np.array(sorted(ids), np.uint64)
        for split in splits:
            source = split.parent.name
            for place in _places(split, wanted):
                yield f"{source}: divided; its function at byte {ids[place.document_id]:,}:"
                yield from place.lines()

    def _held_out_repeated(self, ids: set[int]) -> Iterator[str]:
        for source, split in self._splits:
            if split.name != "train" or not self._here(source):
                continue
            folders = [folder for name, stage, folder in chunk_folders(self._output) if (name, stage) == (source, "shards")]
            for document in Aside(folders, Manifest.load(split).dtype).documents():
                if document_id(document.id) in ids:
                    yield f"{source}: was held out, and left out because its text also occurs in training"
                    yield f"  {document_id(document.id):016x}  {printable(document.id)}"


class _Place(NamedTuple):
    """A document in a split."""

    source: str
    split: str
    shard: str
    pack: str
    number: int
    """Of the document in the split."""
    document_id: int
    sizes: str
    segments: str
    text: str | None
    problem: str
    """Why there is no text."""

    def lines(self) -> Iterator[str]:
        """Where it is and how it begins."""
        yield f"{self.source}: kept in {self.split}: {self.shard}, pack {self.pack}, document {self.number:,} of the split"
        yield f"  {self.document_id:016x}  {self.sizes}"
        yield f"  {self.segments}"
        if self.text is None:
            yield f"  (its text cannot be shown: {self.problem})"
        else:
            yield f"  begins: {printable(self.text[:_BEGINNING])}"


def _places(split: Path, wanted: np.ndarray) -> Iterator[_Place]:
    """Where the documents of these ids (sorted) are in a split."""
    reader = SplitReader(split)
    shards = iter([(shard.name, number) for shard in reader.manifest.shards for number in range(shard.num_packs)])
    before, tokenizer, problem = 0, None, ""
    try:
        tokenizer = load_tokenizer(split, reader.manifest)
    except UserError as error:
        problem = error.problems[0]
    with progress(f"look through {split}", reader.manifest.num_documents, "documents") as bar:
        for pack in reader.packs():
            shard, number = next(shards)
            ids = pack.documents["document_id"]
            nearest = np.minimum(np.searchsorted(wanted, ids), wanted.size - 1)
            for row in np.flatnonzero(wanted[nearest] == ids).tolist():
                key = f"{shard.removesuffix('.tar')}-{number:06d}"
                yield _place(reader, shard, key, before + row, tokenizer or problem)
            before += pack.documents.size
            bar.advance(pack.documents.size)


def _place(reader: SplitReader, shard: str, pack: str, number: int, tokenizer: Tokenizer | str) -> _Place:
    """tokenizer: why there is none, if so."""
    document, manifest = reader.document(number), reader.manifest
    sizes = f"{document.tokens.size:,} tokens, {int(document.row['num_bytes']):,} bytes"
    segments = spans(document.segments or [(0, manifest.kind)])
    text, problem = (None, tokenizer) if isinstance(tokenizer, str) else (tokenizer.decode(document.tokens), "")
    identity = int(document.row["document_id"])
    return _Place(manifest.source, reader.folder.name, shard, pack, number, identity, sizes, segments, text, problem)


def _makes_pairs(split: Path) -> bool:
    source = Manifest.load(split).prep.get("source")
    shape = source.get("shape") if isinstance(source, dict) else None
    return isinstance(shape, dict) and shape.get("pairs") is not None


def _told(source: str, document: Document) -> str:
    fields = {name: getattr(document, name) for name in ("path", "group", "language", "license")}
    told = ", ".join(f"{name} {printable(value)}" for name, value in fields.items() if value is not None)
    return f"{source}: was read as {printable(document.name)}{f' ({told})' if told else ''}"


def _left_out_lines(source: str, entry: DropEntry) -> Iterator[str]:
    detail = f" ({printable(entry.detail)})" if entry.detail else ""
    yield f"{source}: left out by {printable(entry.step)}: {printable(entry.reason)}{detail}"
    yield f"  {entry.document_id:016x}  {printable(entry.name)}"
    if entry.excerpt:
        yield f"  begins: {printable(entry.excerpt)}"


def ids_of(document: str) -> set[int]:
    """The ids that the user may mean: that of the name, and the id itself."""
    ids = {document_id(document)}
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{16}", document):
        ids.add(int(document, 16))
    return ids


def why(output: Path, document: str, source: str | None = None) -> list[str]:
    """Lines that say what became of a document, by name or id. Raises UserError where nothing is known of it."""
    search = Search(output, source)
    lines = list(search.lines(ids_of(document)))
    lines += search.divided(document, lambda name: any(line.startswith((f"{name}: kept", f"{name}: left")) for line in lines))
    if not lines:
        raise UserError(
            f"{document}: no such document in {output}: neither kept nor left out by a step; give its name within its source, or its id. "
            "What reading skipped (undecodable, empty …) has no record"
        )
    return lines


def main(argv: Sequence[str]) -> int:
    """`codemix prep why OUTPUT DOCUMENT [--source S]`; raises UserError."""
    parser = ArgumentParser(prog="codemix prep why", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output of 'codemix prep run'")
    parser.add_argument("document", metavar="DOCUMENT", help="its name in its source, or its id (16 hexadecimal digits)")
    parser.add_argument("--source", metavar="S", help="look in this source only")
    arguments = parser.parse_args(argv)
    for line in why(arguments.output, arguments.document, arguments.source):
        print(line)
    return 0
