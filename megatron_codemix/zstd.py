"""zstd files that must be read to their end: one that is cut off is an error, as it is with gzip.

`zstandard`'s own stream readers take a truncated file for a shorter whole one. Ground floor: imports nothing of the project.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

_CHUNK_BYTES = 1 << 17


class _Decompressed(io.RawIOBase):
    """Frames end to end; raises EOFError where the last one is incomplete, ZstdError for what is no zstd."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            self._packed = self._packed or self._raw.read(_CHUNK_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def open_zstd(raw: BinaryIO) -> io.BufferedReader:
    """What the zstd file `raw` holds, as a binary file. Reading raises EOFError when it is truncated, ZstdError when damaged."""
    return io.BufferedReader(_Decompressed(raw), 1 << 20)
