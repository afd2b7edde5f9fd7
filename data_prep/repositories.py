"""Files of one repository in an order in which they can be read, and joined into one document.

A file follows those that it imports, as in DeepSeek-Coder (arXiv 2401.14196, algorithm 1): files that have to do with each
other stay together, and of a cycle the file of fewest open imports comes first. A joined document is that of StarCoder2 (arXiv
2402.19173, section 3.1): `<repo_name>` name, then for every file `<file_sep>` path, a line end, text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

from data_prep.documents import Document, Segment, Symbol
from data_prep.imports import Files, imported
from megatron_codemix.config.prep_steps import Repositories
from megatron_codemix.shards import MODALITY_KINDS, Kind, Modality

_REPOSITORY, _FILE = "<repo_name>", "<file_sep>"


def arrange(
    documents: Sequence[Document],
    settings: Repositories,
    modality: Modality = "code",
    shape: Callable[[Document], Iterable[Document]] = lambda document: (document,),
) -> list[Document]:
    """The documents of one group in order, joined where `settings.join` says so.

    shape: what becomes of each document between ordering and joining; a control may make its imports unreadable.
    The same for any order of `documents`, whose names differ. `fields["files"]` of a joined document holds the names of its files.
    Memory: the texts twice.
    """
    shaped = [result for document in in_order(documents, settings) for result in shape(document)]
    return list(joined(shaped, settings.max_bytes, modality)) if settings.join else shaped


def in_order(documents: Sequence[Document], settings: Repositories) -> list[Document]:
    """The documents of one group in the order of the settings."""
    documents = sorted(documents, key=lambda document: (_path(document), document.name))
    if settings.order == "path":
        return documents
    files = Files([_path(document) for document in documents])
    imports = [imported(files, _path(document), document.text, document.language) for document in documents]
    return [documents[place] for place in dependency_order(imports)]


def dependency_order(imports: Sequence[set[int]]) -> list[int]:
    """Places 0 … n-1 such that each stands behind those in `imports[place]`.

    Connected places are next to each other. Where a cycle forbids it, the place of fewest imports that are still open is taken,
    of those the first. O((n + edges) log n).
    """
    importers: list[list[int]] = [[] for _ in imports]
    for place, needed in enumerate(imports):
        for other in needed:
            importers[other].append(place)
    order: list[int] = []
    done = [False] * len(imports)
    for component in _components(imports, importers):
        still_open = {place: len(imports[place]) for place in component}
        heap = [(count, place) for place, count in still_open.items()]
        heapify(heap)
        while heap:
            count, place = heappop(heap)
            if done[place] or count != still_open[place]:
                continue
            done[place] = True
            order.append(place)
            for importer in importers[place]:
                still_open[importer] -= 1
                if not done[importer]:
                    heappush(heap, (still_open[importer], importer))
    return order


def _components(imports: Sequence[set[int]], importers: Sequence[list[int]]) -> Iterator[list[int]]:
    """Connected components, by their first place."""
    seen = [False] * len(imports)
    for first in range(len(imports)):
        if seen[first]:
            continue
        seen[first] = True
        component, edge = [first], [first]
        while edge:
            place = edge.pop()
            for other in (*imports[place], *importers[place]):
                if not seen[other]:
                    seen[other] = True
                    component.append(other)
                    edge.append(other)
        yield sorted(component)


def joined(documents: Sequence[Document], max_bytes: int, modality: Modality) -> Iterator[Document]:
    """Files of one group, in order, as few documents: each is closed once it has `max_bytes` bytes of files."""
    batch: list[Document] = []
    size = number = 0
    for place, document in enumerate(documents):
        batch.append(document)
        size += len(document.text.encode("utf-8"))
        if size >= max_bytes or place == len(documents) - 1:
            yield _join(batch, number, MODALITY_KINDS[modality])
            batch, size, number = [], 0, number + 1


def _join(files: Sequence[Document], number: int, kind: Kind) -> Document:
    group = files[0].group
    texts: list[str] = []
    symbols: list[Symbol] = []
    segments: list[Segment] = []
    size = 0
    bytes_of: Counter[str] = Counter()
    if group is not None:
        symbols.append(Symbol(0, _REPOSITORY, kind))
        segments.append((0, kind))
        texts.append(group)
        size = len(group.encode("utf-8"))
    for file in files:
        head = _one_line(_path(file)) + "\n"
        start = size + len(head.encode("utf-8"))
        symbols.append(Symbol(size, _FILE, kind))
        symbols += [symbol._replace(offset=start + symbol.offset) for symbol in file.symbols]
        segments.append((size, kind))
        segments += [(start + offset, kind) for offset, kind in file.segments or ((0, kind),)]
        texts += (head, file.text)
        size = start + len(file.text.encode("utf-8"))
        if file.language:
            bytes_of[file.language] += size - start
    return Document(
        name=f"{files[0].name if group is None else group}#{number}",
        text="".join(texts),
        group=group,
        language=max(bytes_of, key=lambda name: (bytes_of[name], name)) if bytes_of else None,
        license=_all_licenses(files),
        segments=tuple(_merged(segments)) if any(file.segments is not None for file in files) else None,
        symbols=tuple(symbols),
        fields={"files": [file.name for file in files]},
    )


def _all_licenses(files: Sequence[Document]) -> str | None:
    names = sorted({file.license for file in files if file.license})
    return " AND ".join(f"({name})" if " OR " in name and len(names) > 1 else name for name in names) or None


def _merged(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Without segments of no bytes, and neighbours of one kind as one."""
    last: Kind | None = None
    for (start, kind), (end, _) in zip(segments, [*segments[1:], (1 << 63, Kind.CODE)], strict=True):
        if kind != last and start < end:
            yield start, kind
            last = kind


def _path(document: Document) -> str:
    return document.path if document.path is not None else document.name


def _one_line(path: str) -> str:
    return "\\n".join(path.splitlines()) if len(path.splitlines()) > 1 else path.rstrip("\r\n")
