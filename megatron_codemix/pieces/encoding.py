"""The bytes of a safetensors file, made as a stream: the header from names and shapes alone, tensors a few MiB at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 8 << 20
LARGEST_HEADER = 100_000_000
"""Bytes that safetensors itself accepts."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def encode_header(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """What precedes the data of tensors (name → dtype and shape) that lie end to end in this order; a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert len(text) <= LARGEST_HEADER, "too many tensors for one file"
    return len(text).to_bytes(8, "little") + text


def encode_tensor(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor, row-major: views where it lies on the host, else copies of 8 MiB at a time."""
    flat = tensor.detach().view(-1)
    step = CHUNK_BYTES // flat.element_size()
    for start in range(0, len(flat), step):
        yield bytes_of(flat[start : start + step].cpu().contiguous())


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    # numpy knows no bfloat16
    array: Any = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return memoryview(array).cast("B")
