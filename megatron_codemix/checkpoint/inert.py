"""Pickles and torch archives read as data: nothing in them is called, imported or made.

A pickle is a program. Here it runs in an interpreter in which every name stands for an inert record: what it would have called is
written down, with the arguments, and nothing happens. So there is no list of classes that must be kept safe.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_codemix.checkpoint.inert_keys import check_keys

_DTYPES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MOST_BYTES = 1 << 30
"""Of a pickle, itself without tensors."""
_MOST_INFLATED = 1 << 20
"""Of a compressed one; torch.save compresses none."""


class Inert:
    """What stands for an object of a class, or for the result of a function, that a pickle names."""

    name = ""
    """Of the class or function, with its module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.state: Any = kwargs
        self.items: list[Any] = []

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = object.__new__(cls)
        Inert.__init__(made, *args, **kwargs)
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """As a list would."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """As a list would."""
        self.items.extend(values)

    def get(self, field: str, default: Any = None) -> Any:
        """An attribute, where the object was stored by its attributes."""
        return self.state.get(field, default) if isinstance(self.state, dict) else default


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_pickle(content: bytes) -> Any:
    """The content of a pickle, `Inert` where it is more than built-in values. Raises ValueError for what is none."""
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{len(content):,} bytes are too many for a description")
    try:
        check_keys(content)
        return _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # whatever a damaged pickle leads to
        raise ValueError(f"no readable pickle ({type(error).__name__}: {error})") from None


class _Slice(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._place = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(self._length - self._place, 0))
        read = os.preadv(self._descriptor, [memoryview(buffer)[:count]], self._offset + self._place) if count else 0
        self._place += read
        return read


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that `torch.save` wrote, somewhere in a file."""

    path: Path
    offset: int
    """Bytes from the start of the file to its first element."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int
    """CRC-32 of the storage, which begins `lead` bytes before the offset and has `size` bytes; 0: none."""
    lead: int
    size: int

    def is_intact(self) -> bool:
        """Whether its bytes have the checksum that was written with them."""
        if not self.checksum:
            return True
        crc, place, end = 0, self.offset - self.lead, self.offset - self.lead + self.size
        with open(self.path, "rb", buffering=0) as handle:
            while place < end:
                chunk = os.pread(handle.fileno(), min(1 << 20, end - place), place)
                if not chunk:
                    return False
                crc, place = zlib.crc32(chunk, crc), place + len(chunk)
        return crc == self.checksum


def read_archive_pickle(path: Path) -> Any:
    """The content of a file that `torch.save` wrote, tensors left out. Raises ValueError, OSError."""
    with open(path, "rb", buffering=0) as handle:
        return _open_archive(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)[1]


def find_tensor(path: Path, offset: int, length: int) -> StoredTensor:
    """The tensor that `torch.save` wrote at a place of a file. Raises ValueError, OSError."""
    with open(path, "rb", buffering=0) as handle:
        if offset + length > os.fstat(handle.fileno()).st_size:
            raise ValueError("truncated")
        archive, saved = _open_archive(handle.fileno(), offset, length)
        if not isinstance(saved, Inert) or not saved.name.endswith(("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")):
            raise ValueError("no tensor")
        if saved.name.endswith("_rebuild_parameter"):
            saved = saved.args[0]
        storage, first, shape, stride = saved.args[:4]
        kind, element, key = storage[0], storage[1], str(storage[2])
        dtype = _DTYPES.get((saved.args[6] if saved.name.endswith("_v3") else element).name.rpartition(".")[2])
        shape = tuple(int(number) for number in (shape.args[0] if isinstance(shape, Inert) else shape))
        if kind != "storage" or dtype is None:
            raise ValueError("a tensor that is neither fp32, bf16 nor fp16")
        if not _is_contiguous(shape, stride) or first < 0 or min(shape, default=1) < 0:
            raise ValueError("a tensor that does not lie in one piece")
        entry = next((info for info in archive.infolist() if info.filename.endswith(f"/data/{key}")), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or not _is_little_endian(archive):
            raise ValueError("a tensor whose elements are not there as they are")
        lead = first * dtype.itemsize
        if lead + math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError("a tensor that is longer than its storage")
        begin = offset + entry.header_offset + _local_header(handle.fileno(), offset + entry.header_offset)
        return StoredTensor(path, begin + lead, dtype, shape, entry.CRC, lead, entry.file_size)


def _open_archive(descriptor: int, offset: int, length: int) -> tuple[zipfile.ZipFile, Any]:
    try:
        archive = zipfile.ZipFile(io.BufferedReader(_Slice(descriptor, offset, length)))
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        entry = archive.getinfo(name)
        if entry.file_size > _MOST_BYTES or (entry.compress_type != zipfile.ZIP_STORED and entry.file_size > _MOST_INFLATED):
            raise ValueError("its description is too large")
        return archive, read_pickle(archive.read(name))
    except (zipfile.BadZipFile, StopIteration, NotImplementedError, RuntimeError, struct.error, EOFError, zlib.error) as error:
        raise ValueError(f"not written by torch.save, or truncated ({error})") from None


def _is_little_endian(archive: zipfile.ZipFile) -> bool:
    orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
    return not orders or archive.read(orders[0]) == b"little"


def _local_header(descriptor: int, offset: int) -> int:
    """Bytes of a zip entry's own header, in front of its data."""
    header = os.pread(descriptor, 30, offset)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError("an archive whose entries are not where it says")
    name, extra = struct.unpack("<HH", header[26:30])
    return 30 + name + extra


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for size, given in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and given != step:
            return False
        step *= size
    return True
