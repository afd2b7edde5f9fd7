"""A folder of pieces, read as any other layout wants it.

    reader = PieceReader(folder)
    reader.read(Block("decoder.layers.0.mlp.linear_fc2.weight", (512, 2048), (0, 1024), (512, 1024)), PARAM)

Whether every element of every tensor is there, once, is settled when the folder is opened; so nothing is ever
filled with zeros, and nothing is read twice.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from megatron_codemix.errors import UserError
from megatron_codemix.pieces.files import Beat, StoredSpan, read_elements, read_spans
from megatron_codemix.pieces.piece import KINDS, PARAM, Block

_CHUNK_ELEMENTS = 1 << 20
"""Of a block that is put together from others, at a time: 4 MiB."""

_Blocks = dict[Block, list[StoredSpan]]
"""Stored block → its spans by `start`; the blocks of one tensor share no element."""


class Incomplete(UserError):
    """What lies there can be read, and is not every element of every tensor once."""


class PieceReader:
    """Opens the headers of all *.safetensors files of a folder. Tensors are read when asked for; safe in threads."""

    def __init__(self, folder: Path | str, beat: Beat = lambda: None) -> None:
        """beat: called behind each `read`. Raises UserError when the folder is not the whole training state of one model at
        one step: Incomplete where its files can be read."""
        self.folder, self._beat = Path(folder), beat
        self.step, spans = self._open()
        """Optimizer updates done."""
        self._stored: dict[tuple[str, str], _Blocks] = defaultdict(lambda: defaultdict(list))
        self._shapes: dict[str, tuple[int, ...]] = {}
        for stored in sorted(spans, key=lambda stored: stored.span.start):
            block = stored.span.block
            if self._shapes.setdefault(block.key, block.shape) != block.shape:
                raise self._refusal(f"'{block.key}' has two shapes")
            self._stored[block.key, stored.span.kind][block].append(stored)
        for (key, kind), blocks in self._stored.items():
            self._check(key, kind, blocks)
        for key in self._shapes:
            if PARAM not in self.kinds(key):
                raise self._refusal(f"'{key}' has moments and no weights")

    def _open(self) -> tuple[int, list[StoredSpan]]:
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise UserError(f"{self.folder}: holds no training state (*.safetensors); check the path, or choose another checkpoint")
        steps = {}
        spans: list[StoredSpan] = []
        for path in paths:
            steps[path.name], found = read_spans(path)
            spans += found
        if len(set(steps.values())) > 1:
            (first, one), (second, other) = min(steps.items(), key=lambda item: item[1]), max(steps.items(), key=lambda item: item[1])
            raise self._refusal(f"{first} is of step {one}, {second} of step {other}")
        return steps[paths[0].name], spans

    def _check(self, key: str, kind: str, blocks: _Blocks) -> None:
        """No element twice and, counted, none missing."""
        spans = [stored.span for parts in blocks.values() for stored in parts]
        twice = any(a.span.stop > b.span.start for parts in blocks.values() for a, b in pairwise(parts))
        if twice or _any_cross(list(blocks)):
            raise self._refusal(f"{kind} of '{key}' has elements twice")
        missing = math.prod(self._shapes[key]) - sum(span.num_elements for span in spans)
        if missing:
            raise self._refusal(f"{kind} of '{key}' lacks {missing} of its {math.prod(self._shapes[key])} elements (is a file missing?)")

    def _refusal(self, what: str) -> Incomplete:
        return Incomplete(f"{self.folder}: not a whole training state: {what}; restore it, or choose another checkpoint")

    def keys(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor of the model."""
        return dict(self._shapes)

    def kinds(self, key: str) -> tuple[str, ...]:
        """Which of KINDS are stored of a tensor; `param` always is."""
        return tuple(kind for kind in KINDS if (key, kind) in self._stored)

    def is_whole(self, key: str, kind: str) -> bool:
        """Whether a tensor is stored in one piece."""
        return [stored.span.is_whole for parts in self._of(key, kind).values() for stored in parts] == [True]

    def whole(self, key: str, kind: str = PARAM) -> Tensor:
        """fp32, of the tensor's shape. Raises UserError when it is not stored."""
        self._of(key, kind)
        shape = self._shapes[key]
        return self.read(Block(key, shape, (0,) * len(shape), shape), kind).view(shape)

    def read(self, block: Block, kind: str, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Elements start ≤ i < stop of any block, however it is stored; fp32 (stop − start,).

        out: filled and returned; on any device. Without it, the result is on the host. Memory besides the result: none
        where the block is stored as it is asked for, else a few times 4 MiB. Raises UserError when the tensor is not stored,
        or has another shape.
        """
        blocks = self._of(block.key, kind)
        if self._shapes[block.key] != block.shape:
            there, here = (" × ".join(map(str, shape)) for shape in (self._shapes[block.key], block.shape))
            raise UserError(f"{self.folder}: has '{block.key}' of {there} where {here} is wanted; use the config it was trained with")
        stop = block.num_elements if stop is None else stop
        assert len(block.offset) == len(block.size) == len(block.shape) and 0 <= start <= stop <= block.num_elements
        assert all(o >= 0 and o + s <= n for o, s, n in zip(block.offset, block.size, block.shape))
        if out is None or out.device.type != "cpu" or not out.is_contiguous():
            result = torch.empty(stop - start, dtype=torch.float32)
        else:
            result = out
        assert result.shape == (stop - start,) and result.dtype == torch.float32
        with torch.no_grad():
            if block in blocks:
                _read_run(blocks[block], start, result)
            else:
                _assemble(blocks, block, start, result)
            self._beat()
            return result if out is None or out is result else out.copy_(result)

    def _of(self, key: str, kind: str) -> _Blocks:
        found = self._stored.get((key, kind))
        if found is None:
            raise UserError(f"{self.folder}: has no {kind} of '{key}'; choose another checkpoint, or use the config it was trained with")
        return found


def _any_cross(blocks: Sequence[Block]) -> bool:
    """Whether two of the rectangles share an element."""
    ordered = sorted(blocks, key=lambda block: block.offset)
    for number, block in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if other.offset[0] >= block.offset[0] + block.size[0]:
                break  # as do all that follow
            if _cross(block, other):
                return True
    return False


def _cross(one: Block, other: Block) -> bool:
    return all(a < b + t and b < a + s for a, s, b, t in zip(one.offset, one.size, other.offset, other.size))


def _read_run(parts: list[StoredSpan], start: int, out: Tensor) -> None:
    """Elements start … start + len(out) of a stored block, from the spans that it is cut into."""
    stop = start + len(out)
    first = bisect_right(parts, start, key=lambda stored: stored.span.start) - 1
    for stored in parts[max(first, 0) :]:
        begin, end = max(start, stored.span.start), min(stop, stored.span.stop)
        if begin >= stop:
            break
        read_elements(stored, begin - stored.span.start, out[begin - start : end - start])


def _assemble(blocks: _Blocks, wanted: Block, start: int, out: Tensor) -> None:
    """As `_read_run`, of a block that is not stored: a few rows at a time, from all blocks that share elements with them."""
    stop = start + len(out)
    row = max(math.prod(wanted.size[1:]), 1)
    rows = max(_CHUNK_ELEMENTS // row, 1)
    last = -(-stop // row)
    for top in range(start // row, last, rows):
        bottom = min(top + rows, last)
        chunk = torch.empty((bottom - top, *wanted.size[1:]), dtype=torch.float32)
        offset = (wanted.offset[0] + top, *wanted.offset[1:])
        for block, parts in blocks.items():
            _copy_common(block, parts, offset, chunk)
        begin, end = max(start, top * row), min(stop, bottom * row)
        out[begin - start : end - start] = chunk.view(-1)[begin - top * row : end - top * row]


def _copy_common(block: Block, parts: list[StoredSpan], offset: tuple[int, ...], chunk: Tensor) -> None:
    """Copy what a stored block has of the rectangle that lies at `offset` and is as large as `chunk`."""
    begin = [max(a, b) for a, b in zip(offset, block.offset)]
    end = [min(a + n, b + m) for a, n, b, m in zip(offset, chunk.shape, block.offset, block.size)]
    if any(b >= e for b, e in zip(begin, end)):
        return
    row = math.prod(block.size[1:])
    rows = torch.empty((end[0] - begin[0], *block.size[1:]), dtype=torch.float32)
    _read_run(parts, (begin[0] - block.offset[0]) * row, rows.view(-1))
    columns = tuple(slice(b - o, e - o) for b, e, o in zip(begin[1:], end[1:], block.offset[1:]))
    target = tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offset))
    chunk[target] = rows[(slice(None), *columns)]
