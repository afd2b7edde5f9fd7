"""Documents → one shard file and its sidecar, which appear whole or not at all.

Equal documents in equal order give equal bytes, whoever writes them and when.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_codemix.files import atomic_file, write_bytes
from megatron_codemix.shards.layout import (
    BLOCK,
    DOCUMENT_DTYPE,
    INDEX_DTYPE,
    MODALITY_KINDS,
    SEGMENT_DTYPE,
    TOKEN_DTYPES,
    Kind,
    Modality,
    TokenDtype,
    index_name,
    npy_header,
    tar_header,
)
from megatron_codemix.shards.manifest import ShardEntry, ShardInfo

Segments = Sequence[tuple[int, Kind]]


class _Pack:
    """The documents of one webdataset sample, until it is closed."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.documents: list[tuple[int, int, int]] = []
        self.segments: list[tuple[int, int]] = []
        self.languages: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.num_tokens = 0


def _segment_rows(segments: Segments | None, num_tokens: int, default: Kind) -> list[tuple[int, int]]:
    rows = [(int(start), int(Kind(kind))) for start, kind in segments] if segments is not None else [(0, int(default))]
    starts = [start for start, _ in rows]
    if not rows or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)) or starts[-1] >= num_tokens:
        raise ValueError(f"segments must start at 0 and ascend below the document's {num_tokens} tokens, not {starts}")
    return rows


class ShardWriter:
    """Writes one shard file and its sidecar.

    folder: the split's folder. index: number of the shard (`shard-00000.tar`), or a name of letters, digits,
    '-' and '_' to put after `shard-`. pack_tokens: a pack is closed once it has at least so many tokens.
    As a context manager it closes at the end (`.info` then holds the result) and leaves nothing after an
    exception. Not for sharing between threads.
    """

    def __init__(
        self,
        folder: Path,
        index: int | str,
        *,
        modality: Modality,
        token_dtype: TokenDtype,
        vocab_size: int,
        end_of_text_id: int,
        pack_tokens: int,
    ) -> None:
        self._stem = f"shard-{index:05d}" if isinstance(index, int) else f"shard-{index}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", self._stem):
            raise ValueError(f"shard name {self._stem!r}: letters, digits, '-' and '_' only, at most 60")
        self._folder = Path(folder)
        self._kind = MODALITY_KINDS[modality]
        self._dtype = TOKEN_DTYPES[token_dtype]
        self._vocab_size, self._end_of_text_id, self._pack_tokens = vocab_size, end_of_text_id, pack_tokens
        self._pack = _Pack()
        self._rows: list[tuple[int, ...]] = []
        self._num_documents = self._num_bytes = 0
        self._languages: Counter[str] = Counter()
        self._licenses: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._offset = 0
        self._file = atomic_file(self._folder / f"{self._stem}.tar")
        self._handle = self._file.__enter__()
        self.num_tokens = 0
        """Tokens added so far."""
        self.info: ShardInfo | None = None
        """The result, once closed."""

    def add(
        self,
        tokens: np.ndarray,
        num_bytes: int,
        document_id: int,
        segments: Segments | None = None,
        language: str | None = None,
        license: str | None = None,
    ) -> None:
        """Append one document.

        tokens: 1-d integers, closed by the end-of-text id, which occurs nowhere else in it. num_bytes: UTF-8
        bytes of its text. document_id: `document_id(name)`. segments: (token start within the document, kind),
        from 0, ascending; neighbours of one kind are joined; None: all of it is the source's modality.

        Raises ValueError for what the format cannot hold (here, or when the pack is closed).
        """
        tokens = np.array(tokens)  # a copy: the caller may reuse its buffer
        if tokens.ndim != 1 or tokens.dtype.kind not in "ui" or tokens.size == 0 or int(tokens[-1]) != self._end_of_text_id:
            raise ValueError(f"document {document_id:016x}: tokens must be 1-d integers that end with {self._end_of_text_id}")
        pack = self._pack
        for start, kind in _segment_rows(segments, tokens.size, self._kind):
            if not pack.segments or pack.segments[-1][1] != kind:
                pack.segments.append((pack.num_tokens + start, kind))
        pack.documents.append((pack.num_tokens, num_bytes, document_id))
        pack.tokens.append(tokens)
        pack.num_tokens += tokens.size
        self.num_tokens += tokens.size
        if language is not None:
            pack.languages[language] += 1
        if license is not None:
            pack.licenses[license] += 1
        if pack.num_tokens >= self._pack_tokens:
            self._close_pack()

    def _write(self, content: bytes | memoryview) -> None:
        self._handle.write(content)
        self._digest.update(content)
        self._offset += len(content)

    def _write_member(self, name: str, header: bytes, content: bytes | memoryview) -> int:
        """Append a tar member; returns where `content` lies in the file."""
        size = len(header) + len(content)
        self._write(tar_header(name, size) + header)
        offset = self._offset
        self._write(content)
        self._write(bytes(-size % BLOCK))
        return offset

    def _write_array(self, name: str, array: np.ndarray) -> int:
        header = npy_header(array.dtype, array.size)
        return self._write_member(name, header, array.view(np.uint8).data)

    def _checked_tokens(self, pack: _Pack) -> np.ndarray:
        tokens = np.concatenate(pack.tokens)
        ends = np.count_nonzero(tokens == self._end_of_text_id)
        if ends == len(pack.documents) and int(tokens.max()) < self._vocab_size and int(tokens.min()) >= 0:
            return tokens.astype(self._dtype, copy=False)
        for document, (_, _, identity) in zip(pack.tokens, pack.documents):
            if np.count_nonzero(document == self._end_of_text_id) > 1:
                raise ValueError(f"document {identity:016x}: the end-of-text id {self._end_of_text_id} occurs inside it")
            if int(document.max()) >= self._vocab_size or int(document.min()) < 0:
                raise ValueError(f"document {identity:016x}: a token is outside 0 … {self._vocab_size - 1}")
        raise AssertionError("a pack breaks an invariant that none of its documents breaks")

    def _close_pack(self) -> None:
        pack, self._pack = self._pack, _Pack()
        if not pack.documents:
            return
        key = f"{self._stem}-{len(self._rows):06d}"
        tokens = self._checked_tokens(pack)
        documents = np.array(pack.documents, DOCUMENT_DTYPE)
        segments = np.array(pack.segments, SEGMENT_DTYPE)
        num_bytes = int(documents["num_bytes"].sum())
        plain = len(segments) == 1 and segments["kind"][0] == self._kind
        row = [self._write_array(f"{key}.tokens.npy", tokens), tokens.size]
        row += [self._write_array(f"{key}.documents.npy", documents), documents.size]
        row += [0, 0] if plain else [self._write_array(f"{key}.segments.npy", segments), segments.size]
        counts = {
            "num_tokens": tokens.size,
            "num_documents": documents.size,
            "num_bytes": num_bytes,
            "languages": dict(sorted(pack.languages.items())),
            "licenses": dict(sorted(pack.licenses.items())),
        }
        self._write_member(f"{key}.json", b"", json.dumps(counts, ensure_ascii=False).encode("utf-8"))
        self._rows.append(tuple(row))
        self._num_documents += documents.size
        self._num_bytes += num_bytes
        self._languages.update(pack.languages)
        self._licenses.update(pack.licenses)

    def close(self) -> ShardInfo:
        """Finish the shard: both files are on disk, under their names, when this returns."""
        if self.info is not None:
            return self.info
        try:
            self._close_pack()
            self._write(bytes(2 * BLOCK))
            name = f"{self._stem}.tar"
            index = npy_header(INDEX_DTYPE, len(self._rows)) + np.array(self._rows, INDEX_DTYPE).tobytes()
            write_bytes(self._folder / index_name(name), index)
        except BaseException as error:
            self.abort(error)
            raise
        self._file.__exit__(None, None, None)
        entry = ShardEntry(
            name=name,
            num_tokens=self.num_tokens,
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            num_packs=len(self._rows),
            size=self._offset,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        self.info = ShardInfo(entry, dict(self._languages), dict(self._licenses))
        return self.info

    def abort(self, error: BaseException) -> None:
        """Give up: nothing of the shard remains on disk."""
        self._file.__exit__(type(error), error, error.__traceback__)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if error is None:
            self.close()
        else:
            self.abort(error)
