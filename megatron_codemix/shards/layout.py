"""The bytes of `format_version` 1: dtypes of the arrays, ids of documents, npy and ustar headers.

Writer, reader and verification share this file, so that they cannot disagree. See docs/formats.md.
Headers are written by hand because `numpy.save` and `tarfile` may change theirs between versions, and
equal input must give equal bytes: the sha256 in the manifest is how a split is recognised.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Literal

import numpy as np

FORMAT_VERSION = 1
ALIGNMENT = 64
BLOCK = 512
# An octal field of eleven digits: what plain ustar can say.
MAX_MEMBER_BYTES = 8**11 - 1

Modality = Literal["code", "text"]
TokenDtype = Literal["uint16", "uint32"]


class Kind(IntEnum):
    """What a segment of a document is. Further kinds are added at the end, never renumbered."""

    TEXT = 0
    CODE = 1
    COMMENT = 2
    DOCSTRING = 3
    SIGNATURE = 4
    """Of a function: from its first byte up to the docstring or body."""
    BODY = 5
    """Of a function, without its docstring and comments; code outside functions is CODE."""


TEXT_KINDS = frozenset({Kind.TEXT, Kind.COMMENT, Kind.DOCSTRING})
"""Kinds that are natural language; all others are code."""
MODALITY_KINDS: dict[Modality, Kind] = {"text": Kind.TEXT, "code": Kind.CODE}
TOKEN_DTYPES: dict[TokenDtype, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
DOCUMENT_DTYPE = np.dtype([("token_start", "<u8"), ("num_bytes", "<u8"), ("document_id", "<u8")])
SEGMENT_DTYPE = np.dtype([("token_start", "<u8"), ("kind", "u1")])
INDEX_DTYPE = np.dtype(
    [(name, "<u8") for name in ("tokens_offset", "num_tokens", "documents_offset", "num_documents", "segments_offset", "num_segments")]
)


def token_dtype_for(vocab_size: int) -> TokenDtype:
    """The token dtype the format prescribes for a vocabulary: uint16 up to 65,536 pieces."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def document_id(name: str) -> int:
    """Id of a document: the first 8 bytes (big endian) of sha256 of its source-relative name. 0 … 2⁶⁴−1."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def index_name(shard_name: str) -> str:
    """File name of a shard's sidecar: `shard-00000.tar` → `shard-00000.index.npy`."""
    return shard_name.removesuffix(".tar") + ".index.npy"


def npy_header(dtype: np.dtype, length: int) -> bytes:
    """Header (npy version 1.0) of a 1-d array, padded to a multiple of 64 bytes.

    In a tar a payload begins at a multiple of 512, so the array's data is 64-byte aligned in the file.
    """
    descr = repr(dtype.descr if dtype.names else dtype.str)
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': ({length},), }}"
    padding = -(10 + len(text) + 1) % ALIGNMENT
    body = (text + " " * padding + "\n").encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def tar_header(name: str, size: int) -> bytes:
    """A plain ustar header of a regular file: mode 644, owner 0, mtime 0, no user names.

    A float mtime, as `webdataset.TarWriter` writes, would need a PAX record (1 KiB) per member.

    Raises ValueError when the name is over 100 bytes or the size over 8 GiB.
    """
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size > MAX_MEMBER_BYTES:
        raise ValueError(f"tar member {name!r} of {size} bytes: ustar holds names up to 100 bytes, files up to {MAX_MEMBER_BYTES}")
    header = bytearray(BLOCK)
    header[: len(encoded)] = encoded
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
