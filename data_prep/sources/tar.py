"""Tar files read from front to back: nothing is extracted, and no header makes more memory than a mebibyte be used.

`tarfile` reads extended headers of any size whole, takes a tar that ends between two members for complete, and passes over
what comes behind the closing blocks, such as a second tar.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED, _GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
_HEADERS = frozenset({_LONG_NAME, _LONG_LINK, *_EXTENDED, _GLOBAL})
_MOST_DIGITS = 20
"""Of a size: Python refuses to read numbers of thousands of digits."""
_OLD_SPARSE_GOES_ON, _SPARSE_GOES_ON = 482, 504
"""Where GNU's header of a sparse file, and each block that goes on with it, tells whether another one follows."""


class DamagedTar(Exception):
    """What is wrong with a tar, in words, and how to mend it."""

    def __init__(self, what: str, mend: str = "fetch the file again") -> None:
        super().__init__(what)
        self.mend = mend


class Member:
    """One member; its content can be read until the next one is asked for."""

    def __init__(self, name: str, is_file: bool, is_folder: bool, size: int, read: Callable[[int], bytes]) -> None:
        self.name, self.size, self.is_folder = name, size, is_folder
        self.is_file = is_file
        """Whether it has the file's whole content: links have none, and sparse files lack their holes."""
        self._read, self.left = read, size

    def read(self) -> bytes:
        """The whole content. Raises DamagedTar where the tar ends within it."""
        content = self._read(self.left)
        self.left = 0
        return content


def members(stream: BinaryIO) -> Iterator[Member]:
    """The members of an uncompressed tar (ustar, GNU or pax). Raises DamagedTar where it is cut off or damaged."""

    def read(size: int) -> bytes:
        parts = []
        while size > 0:
            part = stream.read(min(size, _COPY_BYTES))
            if not part:
                raise DamagedTar("it ends within a member")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(size: int) -> None:
        while size > 0:
            size -= len(read(min(size, _COPY_BYTES)))

    extended: dict[str, str] = {}
    header_bytes = 0
    while True:
        try:
            block = read(_BLOCK)
        except DamagedTar:
            raise DamagedTar("it ends without its closing blocks") from None
        if not any(block):
            _check_end(stream)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DamagedTar(f"it has a damaged header: {error}") from None
        if info.size < 0:
            raise DamagedTar("it has a member of negative size")
        padding = -info.size % _BLOCK
        if info.type in _HEADERS:
            header_bytes += info.size
            if header_bytes > _MOST_HEADER_BYTES:
                raise DamagedTar(f"it has an extended header of {header_bytes:,} bytes")
            content = read(info.size)
            skip(padding)
            if info.type == _LONG_NAME:
                extended["path"] = _text(content.rstrip(b"\0"))
            elif info.type in _EXTENDED:
                extended |= _records(content)
            continue
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended)
        goes_on = info.type == tarfile.GNUTYPE_SPARSE and block[_OLD_SPARSE_GOES_ON]
        while goes_on:
            goes_on = read(_BLOCK)[_SPARSE_GOES_ON]
        size = _size(extended, info)
        name = extended.get("GNU.sparse.name", extended.get("path", info.name))
        member = Member(name, info.isreg() and not sparse, info.isdir(), size, read)
        extended, header_bytes = {}, 0
        yield member
        skip(member.left + -size % _BLOCK)


def _check_end(stream: BinaryIO) -> None:
    """Raises DamagedTar unless nothing but zeros follows. Reads to the end: what packed a tar has its checksum there."""
    while block := stream.read(_COPY_BYTES):
        if block.count(0) != len(block):
            raise DamagedTar("it goes on behind its closing blocks, as tars do that were joined end to end", "give each tar by itself")


def _size(extended: dict[str, str], info: tarfile.TarInfo) -> int:
    if not info.isreg() and info.type in tarfile.SUPPORTED_TYPES:
        return 0  # only files, and what nobody knows, have content behind their header
    return _number(extended["size"].encode("utf-8", "replace"), 0) if "size" in extended else info.size


def _number(digits: bytes, least: int) -> int:
    if not digits.isdigit() or len(digits) > _MOST_DIGITS or int(digits) < least:
        raise DamagedTar("it has a damaged extended header")
    return int(digits)


def _records(content: bytes) -> dict[str, str]:
    """The records 'LENGTH KEY=VALUE\\n' of a pax header."""
    found: dict[str, str] = {}
    while content:
        digits, separator, _ = content.partition(b" ")
        length = _number(digits, 1)
        if not separator or length > len(content):
            raise DamagedTar("it has a damaged extended header")
        key, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        found[_text(key)] = _text(value)
        content = content[length:]
    return found


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
