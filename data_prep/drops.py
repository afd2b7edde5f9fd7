"""Every document that was left out, with the step, the reason and its beginning: drops.jsonl.zst, a JSON object a line.

codemix prep drops OUTPUT                          # for each source, step and reason: how many, and some of them
codemix prep drops OUTPUT --step secrets --samples 10

zstd files may be put end to end: `join_drops` makes one of many without reading them.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson
import zstandard

from data_prep.documents import DropRecord
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError, printable
from megatron_codemix.files import atomic_file
from megatron_codemix.progress import progress
from megatron_codemix.shards import document_id
from megatron_codemix.zstd import open_zstd

DROPS_NAME = "drops.jsonl.zst"
WORK = ".work"
_EXCERPT, _DETAIL = 200, 500
_REMEDY = "make the source anew with 'codemix prep run --force'"


class DropEntry(NamedTuple):
    """A line of drops.jsonl.zst."""

    document_id: int
    """`shards.document_id` of the document's name."""
    name: str
    """Its name in its source; what is no Unicode (a lone surrogate) is written `\\ud800`."""
    step: str
    reason: str
    detail: str
    excerpt: str
    kept_instead: int | None
    """Of a duplicate: id of the document that stayed."""


def _sound(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class DropsWriter:
    """Writes one drops file, which appears whole when the block ends; equal records give equal bytes.

        with DropsWriter(folder / DROPS_NAME) as drops:
            drops.add(record)

    place: of the file; or a file that is open, to which they are appended. Memory stays bounded. A file without records is written
    too: it says that nothing was left out.
    """

    def __init__(self, place: Path | BinaryIO) -> None:
        self._place = place
        self._stack = ExitStack()
        self.counts: Counter[tuple[str, str]] = Counter()
        """(step, reason) → records written."""

    def __enter__(self) -> DropsWriter:
        with ExitStack() as stack:
            handle = stack.enter_context(atomic_file(self._place)) if isinstance(self._place, Path) else self._place
            self._out = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(handle, closefd=False))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._stack.__exit__(kind, error, traceback)

    def add(self, record: DropRecord, kept_instead: int | None = None) -> None:
        """Append a record. kept_instead: of a duplicate, the id of the document that stays."""
        line = {
            "document_id": f"{document_id(record.name):016x}",
            "name": _sound(record.name),
            "step": record.step,
            "reason": record.reason,
            "detail": _sound(record.detail[:_DETAIL]),
            "excerpt": _sound(record.excerpt[:_EXCERPT]),
        }
        if kept_instead is not None:
            line["kept_instead"] = f"{kept_instead:016x}"
        self._out.write(orjson.dumps(line) + b"\n")
        self.counts[record.step, record.reason] += 1

    def add_all(self, records: Iterable[DropRecord]) -> None:
        """Append records, such as a `Tally.drops`."""
        for record in records:
            self.add(record)


def read_drops(path: Path) -> Iterator[DropEntry]:
    """The records of a drops file, in order. Raises UserError where it is damaged or cut off."""
    number = 0
    try:
        with open(path, "rb") as raw, open_zstd(raw) as lines:
            for line in lines:
                yield _entry(orjson.loads(line))
                number += 1
    except (OSError, EOFError, zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged behind record {number} ({error}); {_REMEDY}") from None


def _entry(line: dict[str, str]) -> DropEntry:
    kept = line.get("kept_instead")
    texts = [line[name] for name in ("name", "step", "reason", "detail", "excerpt")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not a record of a left-out document")
    return DropEntry(int(line["document_id"], 16), *texts, kept_instead=None if kept is None else int(kept, 16))


def join_drops(paths: Iterable[Path], path: Path) -> None:
    """Write the drops files `paths`, end to end, as one at `path`; what a killed process left of writing it goes."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    with atomic_file(path) as out:
        for part in paths:
            with open(part, "rb") as handle:
                shutil.copyfileobj(handle, out)


def drop_files(output: Path) -> dict[str, list[Path]]:
    """Source → its drops files, of a prep output: OUTPUT/SOURCE/drops.jsonl.zst, or of a source that is not finished those of its
    chunks so far.

    Raises UserError when there is no such folder.
    """
    output = Path(output)
    if not output.is_dir():
        raise UserError(f"{output}: no such folder; give the output of 'codemix prep run'")
    found = {path.parent.name: [path] for path in sorted(output.glob(f"[!.]*/{DROPS_NAME}"))}
    for folder in sorted(path for path in (output / WORK).glob("[!.]*") if path.is_dir()):
        parts = sorted(path for path in folder.rglob(f"*{DROPS_NAME}") if not path.name.startswith("."))
        parts = [path for path in parts if not any(part.endswith(".tmp") for part in path.parts)]
        if parts and folder.name not in found:
            found[folder.name] = parts
    return found


def read_source_drops(paths: Sequence[Path]) -> Iterator[DropEntry]:
    """The records of several drops files, in order; shows progress. Raises UserError."""
    with progress("left out", unit="documents") as bar:
        for path in paths:
            for entry in read_drops(path):
                bar.advance()
                yield entry


def _key(entry: DropEntry) -> bytes:
    return hashlib.blake2b(_sound(entry.name).encode(), digest_size=16, key=f"{entry.step}\0{entry.reason}".encode()[:64]).digest()


def sample_drops(entries: Iterable[DropEntry], samples: int) -> tuple[Counter[tuple[str, str]], dict[tuple[str, str], list[DropEntry]]]:
    """(documents by (step, reason), `samples` of each) of one source.

    Which ones follows from a hash of their names: always the same, from all of the source, whatever the order.
    Memory grows with `samples` and the number of reasons only.
    """
    counts: Counter[tuple[str, str]] = Counter()
    heaps: dict[tuple[str, str], list[tuple[int, int, DropEntry]]] = {}
    for number, entry in enumerate(entries):
        group = entry.step, entry.reason
        counts[group] += 1
        heap = heaps.setdefault(group, [])
        item = -int.from_bytes(_key(entry), "big"), -number, entry
        if len(heap) < samples:
            heapq.heappush(heap, item)
        elif heap and item > heap[0]:
            heapq.heapreplace(heap, item)
    return counts, {group: [entry for _, _, entry in sorted(heap, reverse=True)] for group, heap in sorted(heaps.items())}


def _lines(source: str, counts: Counter[tuple[str, str]], chosen: dict[tuple[str, str], list[DropEntry]]) -> Iterator[str]:
    for (step, reason), number in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0])):
        yield f"{printable(source)}  {printable(step)}: {printable(reason)}  {number:,} documents"
        for entry in chosen[step, reason]:
            detail = f"  ({printable(entry.detail)})" if entry.detail else ""
            yield f"  {entry.document_id:016x}  {printable(entry.name)}{detail}"
            if entry.excerpt:
                yield f"    {printable(entry.excerpt)}"


def main_drops(argv: Sequence[str]) -> int:
    """`codemix prep drops OUTPUT [--source S] [--step S] [--samples N]`; raises UserError."""
    parser = ArgumentParser(prog="codemix prep drops", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output of 'codemix prep run'")
    parser.add_argument("--source", metavar="S", help="only of this source")
    parser.add_argument("--step", metavar="S", help="only what this step left out ('text_quality', 'near duplicate' …)")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="show N documents of each reason (default: 3)")
    arguments = parser.parse_args(argv)
    if arguments.samples < 0:
        raise UserError(f"--samples {arguments.samples}: must be at least 0")
    files = drop_files(arguments.output)
    if arguments.source is not None and arguments.source not in files:
        raise UserError(f"--source {arguments.source}: no record of left-out documents; there are: {', '.join(files) or 'none'}")
    steps: set[str] = set()
    shown = 0
    for source in [arguments.source] if arguments.source is not None else files:
        counts, chosen = sample_drops(read_source_drops(files[source]), arguments.samples)
        steps |= {step for step, _ in counts}
        wanted = Counter({key: number for key, number in counts.items() if arguments.step in (None, key[0])})
        for line in _lines(source, wanted, chosen):
            print(line)
        shown += wanted.total()
    if arguments.step is not None and arguments.step not in steps:
        raise UserError(f"--step {arguments.step}: left nothing out; steps that did: {', '.join(sorted(steps)) or 'none'}")
    if not shown:
        print(
            f"{arguments.output}: no document was left out by a step"
            if files
            else f"{arguments.output}: has no record of left-out documents"
        )
    return 0
