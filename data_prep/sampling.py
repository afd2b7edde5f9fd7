"""Drawing documents for the tokenizer: evenly, by a keyed hash, whatever their order and the number of workers.

Apart from `tokenizer_command` so that worker processes do not import the exporter with all of transformers.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field

from data_prep.documents import Source, Tally, Unit, cut, is_held_out, text_hash
from data_prep.workers import Workers
from megatron_codemix.config import PrepConfig
from megatron_codemix.errors import UserError
from megatron_codemix.progress import progress


@dataclass
class Sample:
    """The documents of smallest key, whose bytes just reach the share: independent of the order they come in."""

    share: int
    """UTF-8 bytes wanted."""
    num_bytes: int = 0
    _heap: list[tuple[int, str, int]] = field(default_factory=list)

    def add(self, key: int, text: str, size: int) -> None:
        """Consider one document."""
        heapq.heappush(self._heap, (-key, text, size))
        self.num_bytes += size
        while self.num_bytes - self._heap[0][2] >= self.share:
            self.num_bytes -= heapq.heappop(self._heap)[2]

    def texts(self) -> list[str]:
        """The drawn documents, in the order of their keys."""
        return [text for _, text, _ in sorted(self._heap, key=lambda item: (-item[0], item[1]))]


@dataclass(frozen=True, slots=True)
class _Draw:
    """A unit and how to draw from it."""

    unit: Unit
    validation: float
    split_seed: int
    key_seed: int
    max_document_bytes: int | None
    rate: float


def _drawn(draw: _Draw) -> tuple[int, list[tuple[int, str, int]]]:
    """(bytes of input, [(key, text, bytes)]) of a unit's training documents whose key is small enough to matter."""
    found: list[tuple[int, str, int]] = []
    for document in draw.unit.documents(Tally()):
        text, encoded = cut(document.text, draw.max_document_bytes)
        identity = text_hash(encoded)
        key = int.from_bytes(hashlib.blake2b(f"{draw.key_seed}\0{identity}".encode(), digest_size=8).digest(), "big")
        group = document.group if document.group is not None else f"text:{identity:016x}"
        if key < draw.rate * 2**64 and text.strip() and not is_held_out(group, draw.split_seed, draw.validation):
            found.append((key, text, len(encoded)))
    return draw.unit.input_bytes, found


def draw_sample(config: PrepConfig, name: str, share: int, source: Source, workers: Workers) -> Sample:
    """Draw `share` bytes of the source's training documents. Raises UserError where there is none, and for bad input."""
    size = sum(item[1] for item in source.inputs())
    # A text is seldom smaller than a sixteenth of its input: of a large source most documents need not leave the worker.
    rate = min(1.0, 16 * share / max(1, size))
    how = (config.split.validation, config.split.seed, config.tokenizer.seed, config.sources[name].max_document_bytes, rate)
    sample = Sample(share)
    with progress(f"read {name}", size, "bytes of input") as bar:
        for num_bytes, documents in workers.map(_drawn, (_Draw(unit, *how) for unit in source.units())):
            for document in documents:
                sample.add(*document)
            bar.advance(num_bytes)
    if not sample.num_bytes:
        raise UserError(f"sources.{name}: holds no document to learn a tokenizer from; give files that do")
    return sample
