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
    return [documents[place] for place in dependency_order([*imports, *files.packages]) if place < len(documents)]


def dependency_order(imports: Sequence[set[int]]) -> list[int]:
    """Places 0 … n-1 such that each stands behind those in `imports[place]`.

    Connected places are next to each other. Places that import each other, directly or not, come together: of those the one of
    fewest imports among them that are still open, then the first. O((n + edges) log n).
    """
    importers: list[list[int]] = [[] for _ in imports]
    for place, needed in enumerate(imports):
        for other in needed:
            importers[other].append(place)
    cycle_of = _cycles(imports)
    members: list[list[int]] = [[] for _ in range(max(cycle_of, default=-1) + 1)]
    for place, cycle in enumerate(cycle_of):
        members[cycle].append(place)
    outer = [{cycle_of[other] for place in places for other in imports[place]} - {cycle} for cycle, places in enumerate(members)]
    outer_importers = [{cycle_of[other] for place in places for other in importers[place]} for places in members]
    order: list[int] = []
    for component in _components(imports, importers):
        cycles = {cycle_of[place] for place in component}
        # no cycles are left between them, so that none is taken before what it needs
        for cycle in _fewest_open(cycles, outer, outer_importers, [places[0] for places in members]):
            inside = set(members[cycle])
            order += _fewest_open(inside, imports, importers, range(len(imports)))
    return order


def _fewest_open(nodes: set[int], needs: Sequence[set[int]], needed_by: Sequence[Iterable[int]], ranks: Sequence[int]) -> Iterator[int]:
    """The nodes, each time the one of fewest needs (among the nodes) that have not come yet, then of the lowest rank."""
    still_open = {node: len(needs[node] & nodes) for node in nodes}
    heap = [(count, ranks[node], node) for node, count in still_open.items()]
    heapify(heap)
    while heap:
        count, _, node = heappop(heap)
        if still_open.get(node) != count:
            continue
        del still_open[node]
        yield node
        for other in needed_by[node]:
            if other in still_open:
                still_open[other] -= 1
                heappush(heap, (still_open[other], ranks[other], other))


def _cycles(imports: Sequence[set[int]]) -> list[int]:
    """For each place the number of its strongly connected component (Tarjan 1972, without recursion)."""
    found = [-1] * len(imports)
    seen: dict[int, int] = {}
    lowest = [0] * len(imports)
    path: list[int] = []
    count = 0
    for first in range(len(imports)):
        if first in seen:
            continue
        work = [(first, iter(sorted(imports[first])))]
        while work:
            place, following = work[-1]
            if place not in seen:
                seen[place] = lowest[place] = len(seen)
                path.append(place)
            other = next(following, None)
            if other is not None:
                if other not in seen:
                    work.append((other, iter(sorted(imports[other]))))
                elif found[other] < 0:
                    lowest[place] = min(lowest[place], seen[other])
                continue
            work.pop()
            if work:
                lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[place])
            if lowest[place] == seen[place]:
                while found[place] < 0:
                    found[path.pop()] = count
                count += 1
    return found


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
