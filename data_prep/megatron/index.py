"""Megatron-LM's `.idx` files, format version 1, as megatron-core's `IndexedDataset` reads them; without torch.

9 bytes "MMIDIDX\\0\\0" · u64 version 1 · u8 code of the token dtype · u64 sequences S · u64 documents + 1
i32 (S,) tokens of each sequence · i64 (S,) its first byte in the .bin · i64 (documents + 1,) first sequence of each document
[i8 (S,) modes, in multimodal datasets alone]
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_codemix.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_HEAD_BYTES = len(_MAGIC) + _HEAD.size
_BLOCK = 1 << 20
# Codes 6 and 7 are floats: features, not tokens.
TOKEN_CODES = {1: np.dtype("u1"), 2: np.dtype("i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"), 5: np.dtype("<i8"), 8: np.dtype("<u2")}


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that Megatron-LM chooses for a vocabulary (`DType.optimal_dtype`): uint16 below 65,500 pieces, else int32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


class MegatronIndex:
    """A `.idx` file and the `.bin` beside it, both checked against each other and mapped, not read.

    Raises UserError when one is missing, truncated, of another format, or not plain token sequences end to end.
    bin: False where the index alone is there.
    """

    def __init__(self, prefix: Path, bin: bool = True) -> None:
        self.path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        try:
            with open(self.path, "rb") as handle:
                head, size = handle.read(_HEAD_BYTES), os.fstat(handle.fileno()).st_size
                if head[: len(_MAGIC)] != _MAGIC or len(head) < _HEAD_BYTES:
                    raise UserError(f"{self.path}: is no Megatron index (.idx); give the common beginning of a .bin and its .idx")
                content = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            bin_size = self.bin_path.stat().st_size if bin else None
        except OSError as error:
            where = error.filename or prefix
            raise UserError(f"{where}: cannot be read ({error.strerror}); PREFIX stands for PREFIX.bin and PREFIX.idx") from None
        version, code, self.num_sequences, entries = _HEAD.unpack(head[len(_MAGIC) :])
        self._check_head(version, code, entries, size)
        self.dtype = TOKEN_CODES[code]
        """Dtype of the tokens in the .bin."""
        self.num_documents = entries - 1
        offset = _HEAD_BYTES
        self.lengths = np.frombuffer(content, "<i4", self.num_sequences, offset)
        """Tokens of each sequence: (num_sequences,) int32."""
        offset += self.lengths.nbytes
        self._pointers = np.frombuffer(content, "<i8", self.num_sequences, offset)
        self.document_starts = np.frombuffer(content, "<i8", entries, offset + self._pointers.nbytes)
        """First sequence of each document, and num_sequences at the end: (num_documents + 1,) int64."""
        end = self._check_sequences()
        if bin_size not in (None, end):
            raise UserError(f"{self.bin_path}: {bin_size:,} bytes, but {self.path.name} speaks of {end:,}; copy or make both anew")
        self.num_tokens = end // self.dtype.itemsize
        self._check_documents()

    def _check_head(self, version: int, code: int, entries: int, size: int) -> None:
        if version != 1:
            raise UserError(f"{self.path}: version {version} of the Megatron index; only 1 is known")
        if code not in TOKEN_CODES:
            raise UserError(f"{self.path}: dtype code {code} is not of whole numbers: these are no tokens; give a tokenised text corpus")
        expected = _HEAD_BYTES + 12 * self.num_sequences + 8 * entries
        if size == expected + self.num_sequences and self.num_sequences:
            raise UserError(f"{self.path}: a multimodal dataset (its sequences have modes), which shards cannot hold; give a text corpus")
        if size != expected or not entries:
            raise UserError(f"{self.path}: truncated or damaged ({size:,} bytes, {expected:,} expected); copy or make it anew")

    def _check_sequences(self) -> int:
        """Where the last sequence ends in the .bin; raises UserError unless all lie end to end."""
        place = 0
        for start in range(0, self.num_sequences, _BLOCK):
            lengths = self.lengths[start : start + _BLOCK].astype(np.int64) * self.dtype.itemsize
            ends = np.cumsum(lengths) + place
            if lengths.min() < 0 or not np.array_equal(self._pointers[start : start + _BLOCK], ends - lengths):
                raise UserError(
                    f"{self.path}: its sequences do not lie end to end in the .bin; rewrite it with Megatron's IndexedDatasetBuilder"
                )
            place = int(ends[-1])
        return place

    def _check_documents(self) -> None:
        starts = self.document_starts
        blocks = (starts[at : at + _BLOCK + 1] for at in range(0, starts.size, _BLOCK))
        ascending = all(np.all(block[:-1] <= block[1:]) for block in blocks)  # differences of 64-bit numbers would wrap
        if starts[0] != 0 or starts[-1] != self.num_sequences or not ascending:
            raise UserError(f"{self.path}: its documents do not cover its sequences in order; make it anew")

    def tokens(self) -> np.ndarray:
        """All tokens, mapped: (num_tokens,), in `dtype`."""
        if not self.num_tokens:
            return np.empty(0, self.dtype)
        return np.memmap(self.bin_path, self.dtype, "r")

    def document_bounds(self, block: int = 1 << 16) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first document, first token of each and the end of the last: int64) of `block` documents at a time."""
        for first in range(0, self.num_documents, block):
            sequences = self.document_starts[first : first + block + 1]
            bounds = np.full(sequences.size, self.num_tokens, np.int64)
            inside = sequences < self.num_sequences
            bounds[inside] = self._pointers[sequences[inside]] // self.dtype.itemsize
            yield first, bounds


def write_index(out: BinaryIO, dtype: np.dtype, num_documents: int, lengths: Iterable[np.ndarray], again: Iterable[np.ndarray]) -> None:
    """Write a `.idx` in which every document is one sequence, in bounded memory.

    lengths, again: the documents' tokens, in blocks; gone through one after the other.
    """
    code = next(code for code, known in TOKEN_CODES.items() if known == dtype)
    out.write(_MAGIC + _HEAD.pack(1, code, num_documents, num_documents + 1))
    for block in lengths:
        out.write(block.astype("<i4").tobytes())
    place = 0
    for block in again:
        ends = np.cumsum(block.astype(np.int64)) * dtype.itemsize + place
        out.write((ends - block * dtype.itemsize).astype("<i8").tobytes())
        place = int(ends[-1]) if ends.size else place
    for start in range(0, num_documents + 1, _BLOCK):
        out.write(np.arange(start, min(start + _BLOCK, num_documents + 1), dtype="<i8").tobytes())
