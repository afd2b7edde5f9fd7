"""Tar files read from front to back: nothing is extracted, and no header makes more memory than a mebibyte be used.

`tarfile` reads extended headers of any size whole, and takes a tar that ends between two members for complete.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED, _GLOBAL = tarfile.XHDTYPE, tarfile.XGLTYPE


class DamagedTar(Exception):
    """What is wrong with a tar, in words."""


class Member:
    """One member; its content can be read until the next one is asked for."""

    def __init__(self, name: str, info: tarfile.TarInfo, size: int, read: Callable[[int], bytes]) -> None:
        self.name, self.size = name, size
        self.is_file = info.isreg() and not info.issparse()
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
    while True:
        try:
            block = read(_BLOCK)
        except DamagedTar:
            raise DamagedTar("it ends without its closing blocks") from None
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DamagedTar(f"it has a damaged header: {error}") from None
        if info.size < 0:
            raise DamagedTar("it has a member of negative size")
        padding = -info.size % _BLOCK
        if info.type in (_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL):
            if info.size > _MOST_HEADER_BYTES:
                raise DamagedTar(f"it has an extended header of {info.size:,} bytes")
            content = read(info.size)
            skip(padding)
            if info.type == _LONG_NAME:
                extended["path"] = _text(content.rstrip(b"\0"))
            elif info.type == _EXTENDED:
                extended |= _records(content)
            continue
        size = _size(extended, info)
        member = Member(extended.get("path", info.name), info, size, read)
        extended = {}
        yield member
        skip(member.left + -size % _BLOCK)


def _size(extended: dict[str, str], info: tarfile.TarInfo) -> int:
    if "size" not in extended:
        # only files have content behind their header
        return info.size if info.isreg() or info.type not in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE) else 0
    if not extended["size"].isdecimal():
        raise DamagedTar("it has a damaged extended header")
    return int(extended["size"])


def _records(content: bytes) -> dict[str, str]:
    """The records 'LENGTH KEY=VALUE\\n' of a pax header."""
    found: dict[str, str] = {}
    while content:
        number, separator, _ = content.partition(b" ")
        if not separator or not number.isdigit() or not 0 < int(number) <= len(content):
            raise DamagedTar("it has a damaged extended header")
        key, _, value = content[len(number) + 1 : int(number) - 1].partition(b"=")
        found[_text(key)] = _text(value)
        content = content[int(number) :]
    return found


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
