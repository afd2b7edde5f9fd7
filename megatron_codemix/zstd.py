"""zstd files that must be read to their end: one that is cut off is an error, as it is with gzip.

`zstandard`'s own stream readers take a truncated file for a shorter whole one. Ground floor: imports nothing of the project.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

_CHUNK_BYTES = 1 << 17
_FEED_BYTES = 1 << 10  # four bytes can stand for 128 KiB, so these for 32 MiB at the most


class _Decompressed(io.RawIOBase):
    """Frames end to end; raises EOFError where the last one is incomplete, ZstdError for what is no zstd."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = memoryview(b"")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            self._packed = self._packed or memoryview(self._raw.read(_CHUNK_BYTES))
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            feed = self._packed[:_FEED_BYTES]
            self._ready = memoryview(self._frame.decompress(feed))
            used = len(feed)
            if self._frame.eof:
                used -= len(self._frame.unused_data)
                self._frame = None
            self._packed = self._packed[used:]
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def open_zstd(raw: BinaryIO) -> io.BufferedReader:
    """What the zstd file `raw` holds, as a binary file. Reading raises EOFError when it is truncated, ZstdError when damaged."""
    return io.BufferedReader(_Decompressed(raw), 1 << 20)
