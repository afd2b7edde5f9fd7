"""A model's parameters on their way through the name map (`hf.py`), as a stream.

A matrix of a layer passes whole; of the vocabulary's matrices, which no map cuts or joins, some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from megatron_codemix.checkpoint import hf
from megatron_codemix.config import ModelConfig

Rows = Callable[[str, int, int], Tensor]
"""Name of a parameter, start, stop → those rows."""
_CHUNK_ELEMENTS = 1 << 21


def chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows, some 2 million elements each, in order."""
    step = max(_CHUNK_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def stream_to_hf(rows: Rows, config: ModelConfig, padded: int, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    """Ours → theirs, in the order of `hf.entries`; a vocabulary matrix as consecutive blocks of its rows, without the padding.

    rows: of ours; padded: rows of our vocabulary matrices.
    """
    for entry in hf.entries(config):
        if entry.vocabulary:
            for start, stop in chunks(vocab_size, config.hidden_size):
                yield entry.theirs[0], rows(entry.ours, start, stop)
        else:
            weight = rows(entry.ours, 0, entry.shape(config, padded)[0])
            yield from zip(entry.theirs, entry.split(weight, config), strict=True)


def stream_from_hf(
    rows: Rows, config: ModelConfig, padded: int, vocab_size: int
) -> Iterator[tuple[str, tuple[int, ...], Iterator[Tensor]]]:
    """Theirs → ours: (name, shape, its elements in order, fp32 (n,) at a time); vocabulary matrices get rows of zeros at the end.

    rows: of theirs, in any precision.
    """
    shapes = hf.hf_shapes(config, vocab_size)
    for entry in hf.entries(config):
        shape = entry.shape(config, padded)
        yield entry.ours, shape, _vocabulary(rows, entry, shape, vocab_size) if entry.vocabulary else _joined(rows, entry, config, shapes)


def _vocabulary(rows: Rows, entry: hf.Entry, shape: tuple[int, ...], vocab_size: int) -> Iterator[Tensor]:
    for start, stop in chunks(vocab_size, shape[1]):
        yield rows(entry.theirs[0], start, stop).float().view(-1)
    for start, stop in chunks(shape[0] - vocab_size, shape[1]):
        yield torch.zeros((stop - start) * shape[1])


def _joined(rows: Rows, entry: hf.Entry, config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[Tensor]:
    weight = entry.join([rows(name, 0, shapes[name][0]) for name in entry.theirs], config)
    for chunk in weight.reshape(-1).split(_CHUNK_ELEMENTS):
        yield chunk.float()


class AsTheirs:
    """Our parameters under transformers' names, read by rows: for its model to be run on them."""

    def __init__(self, rows: Rows, config: ModelConfig, padded: int, vocab_size: int) -> None:
        """rows: of ours; padded: rows of our vocabulary matrices."""
        self._rows, self._config, self._padded = rows, config, padded
        self.shapes: dict[str, tuple[int, ...]] = hf.hf_shapes(config, vocab_size)
        self._entries = {name: (entry, number) for entry in hf.entries(config) for number, name in enumerate(entry.theirs)}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of one of theirs."""
        entry, number = self._entries[name]
        if entry.vocabulary:
            return self._rows(entry.ours, start, stop)
        whole = self._rows(entry.ours, 0, entry.shape(self._config, self._padded)[0])
        return entry.split(whole, self._config)[number][start:stop].contiguous()


class Grown:
    """A model of theirs with rows behind its vocabulary, each the mean of the rows that it has, in fp32.

    The mean of the logits is at most the logarithm of the mean of their exponentials: n such rows behind V entries take no more than
    n / (V + n) of any distribution, and no entry loses more than log(1 + n / V) nats (Hewitt 2021, "Initializing new word embeddings").
    """

    def __init__(self, rows: Rows, config: ModelConfig, vocab_size: int) -> None:
        """rows: of theirs, in any precision; vocab_size: rows that it has."""
        self._rows, self._vocab_size, self._width = rows, vocab_size, config.hidden_size
        self._grown = {entry.theirs[0] for entry in hf.entries(config) if entry.vocabulary}
        self._means: dict[str, Tensor] = {}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of one of theirs, also behind its last one."""
        end = min(stop, self._vocab_size)
        if name not in self._grown or end == stop:
            return self._rows(name, start, stop)
        added = self._mean(name).expand(stop - max(start, end), self._width)
        return torch.cat([self._rows(name, start, end).float(), added]) if start < end else added.clone()

    def _mean(self, name: str) -> Tensor:
        if name not in self._means:
            total = torch.zeros(self._width, dtype=torch.float64)
            for start, stop in chunks(self._vocab_size, self._width):
                total += self._rows(name, start, stop).double().sum(dim=0)
            self._means[name] = (total / self._vocab_size).float()
        return self._means[name]
