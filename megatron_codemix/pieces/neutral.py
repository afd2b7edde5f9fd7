"""The neutral form: whole tensors, the same names and shapes whichever layout trained the model, in as many files as there were writers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from torch import Tensor

from megatron_codemix.pieces.files import Beat, FileDigest, Span, write_spans
from megatron_codemix.pieces.piece import Block
from megatron_codemix.pieces.reader import PieceReader
from megatron_codemix.progress import progress

MAX_FILE_BYTES = 4 << 30
_CHUNK_ELEMENTS = 1 << 20


def form(reader: PieceReader) -> Literal["neutral", "routine"]:
    """neutral: every tensor is stored whole; routine: cut as some layout held it."""
    shapes = reader.keys()
    whole = all(reader.is_whole(key, kind) for key in shapes for kind in reader.kinds(key))
    return "neutral" if whole else "routine"


def write_neutral(
    reader: PieceReader, folder: Path, part: int = 0, parts: int = 1, max_bytes: int = MAX_FILE_BYTES, beat: Beat = lambda: None
) -> dict[str, FileDigest]:
    """Write this process's share of the neutral form into an existing folder; returns file name → digest.

    part of parts: processes that call this with the same reader share the tensors by their bytes, and agree on the
    names without talking: neutral-00000-of-00004.safetensors … A tensor with its moments stays in one share. max_bytes:
    a file is closed before it would exceed this; a larger single tensor has a file of its own. Memory: some 50 MB,
    whatever the model. Raises UserError as the reader does, OSError as `write_pieces` does.
    """
    shares = _shares(reader, parts, max_bytes)
    total = sum(map(len, shares))
    first = sum(map(len, shares[:part]))
    written = {}
    share = shares[part]
    with progress("writing whole tensors", sum(span.num_elements for spans in share for span in spans) / 2**18, "MiB") as bar:
        for number, spans in enumerate(share, first):
            name = f"neutral-{number:05d}-of-{total:05d}.safetensors"
            written[name] = write_spans(folder / name, spans, _stream(reader, spans, bar), reader.step, beat)
    return written


def _shares(reader: PieceReader, parts: int, max_bytes: int) -> list[list[list[Span]]]:
    """For each writer, for each of its files: the spans in it. A function of what is stored alone."""
    loads = [0] * parts
    dealt: list[list[str]] = [[] for _ in range(parts)]
    shapes = reader.keys()
    cost = {key: math.prod(shape) * len(reader.kinds(key)) for key, shape in shapes.items()}
    for key in sorted(shapes, key=lambda key: (-cost[key], key)):
        lightest = loads.index(min(loads))
        loads[lightest] += cost[key]
        dealt[lightest].append(key)
    return [_files(reader, sorted(keys), max_bytes) for keys in dealt]


def _files(reader: PieceReader, keys: list[str], max_bytes: int) -> list[list[Span]]:
    files: list[list[Span]] = []
    pending, shapes = 0, reader.keys()
    for key in keys:
        shape = shapes[key]
        block = Block(key, shape, (0,) * len(shape), shape)
        for kind in reader.kinds(key):
            if not files or pending + 4 * block.num_elements > max_bytes:
                files.append([])
                pending = 0
            files[-1].append(Span(block, kind, 0, block.num_elements))
            pending += 4 * block.num_elements
    return files


def _stream(reader: PieceReader, spans: list[Span], bar) -> Iterator[Tensor]:
    for span in spans:
        for start in range(0, span.stop, _CHUNK_ELEMENTS):
            stop = min(start + _CHUNK_ELEMENTS, span.stop)
            yield reader.read(span.block, span.kind, start, stop)
            bar.advance((stop - start) / 2**18)
