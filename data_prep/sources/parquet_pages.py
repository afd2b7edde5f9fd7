"""How large the pages of a parquet column are, from their headers: Arrow holds a page whole, and can not be told a limit. And how
large the values in a dictionary, each of which may stand for any number of rows.

Format: github.com/apache/parquet-format, `parquet.thrift` (PageHeader), in Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

_WINDOW_BYTES = 1 << 14
_MOST_HEADER_BYTES = 1 << 24
_MOST_DEPTH = 16
_STOP, _TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = 0, 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 11, 12


_DICTIONARY = 2
"""PageType."""
_CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4_raw", "LZ4_RAW": "lz4_raw"}
_LENGTH = struct.Struct("<I")


class Page(NamedTuple):
    """One page."""

    unpacked_bytes: int
    num_values: int
    start: int
    """Where its content begins in the file."""
    packed_bytes: int
    is_dictionary: bool


def pages(handle: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """The pages of the column chunk at bytes start ≤ i < end of a parquet file. Raises ValueError where they are not well formed."""
    while start < end:
        fields, length = _header(handle, start)
        unpacked, packed = fields.get(2), fields.get(3)
        inner = next((value for key in (5, 7, 8) if isinstance(value := fields.get(key), dict)), {})
        num_values = inner.get(1, 0)
        if not (isinstance(unpacked, int) and isinstance(packed, int) and isinstance(num_values, int)) or min(unpacked, packed) < 0:
            raise ValueError("a page header lacks its sizes")
        yield Page(unpacked, num_values, start + length, packed, fields.get(1) == _DICTIONARY)
        start += length + packed


def largest_value(handle: BinaryIO, page: Page, compression: str) -> int:
    """Bytes of the largest of the texts in a dictionary page (PLAIN encoding: a length of four bytes before each).

    compression: of the column, as Arrow names it. Of one that is not known, the page itself is the bound. Raises ValueError where the
    page is damaged.
    """
    handle.seek(page.start)
    content = handle.read(page.packed_bytes)
    if compression != "UNCOMPRESSED":
        try:
            content = pa.Codec(_CODECS[compression]).decompress(content, page.unpacked_bytes, asbytes=True)
        except (KeyError, pa.ArrowException, OSError):
            return page.unpacked_bytes
    place = largest = 0
    while place + _LENGTH.size <= len(content):
        (length,) = _LENGTH.unpack_from(content, place)
        largest = max(largest, length)
        place += _LENGTH.size + length
    if place != len(content):
        raise ValueError("a dictionary page is damaged")
    return largest


def _header(handle: BinaryIO, start: int) -> tuple[dict[int, Any], int]:
    window = _WINDOW_BYTES
    while True:
        handle.seek(start)
        content = handle.read(window)
        reader = _Compact(content)
        try:
            return reader.struct(0), reader.place
        except IndexError:
            # statistics in a header may hold a long value
            if len(content) < window or window >= _MOST_HEADER_BYTES:
                raise ValueError("a page header is cut off") from None
            window *= 16


class _Compact:
    """Structs of the compact protocol: field number → value; what is not needed is passed over. Raises IndexError at the end."""

    def __init__(self, content: bytes) -> None:
        self._content, self.place = content, 0

    def _byte(self) -> int:
        self.place += 1
        return self._content[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a page header holds an impossible number")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (first := self._byte()) != _STOP:
            number = number + (first >> 4) if first >> 4 else self._integer()
            fields[number] = self._value(first & 0xF, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise ValueError("a page header is nested too deep")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in _INTEGERS:
            return self._integer()
        if kind == _DOUBLE:
            self.place += 8
        elif kind == _BINARY:
            length = self._varint()
            self.place += length
        elif kind == _STRUCT:
            return self.struct(depth + 1)
        elif kind in _LISTS:
            first = self._byte()
            count = first >> 4 if first >> 4 < 15 else self._varint()
            self._skip(count, [first & 0xF], depth)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                self._skip(count, [kinds >> 4, kinds & 0xF], depth)
        else:
            raise ValueError("a page header holds an unknown type")
        return None

    def _skip(self, count: int, kinds: list[int], depth: int) -> None:
        for _ in range(count):
            for kind in kinds:
                if kind in (_TRUE, _FALSE):
                    self._byte()  # inside a list a truth value takes a byte
                else:
                    self._value(kind, depth + 1)
