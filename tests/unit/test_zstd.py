"""zstd files are read to their end or refused."""

from __future__ import annotations

import io
import random
import tracemalloc

import pytest
import zstandard

from megatron_codemix.zstd import open_zstd

CONTENT = random.Random(0).randbytes(300_000) + b"line\n" * 300_000


def test_frames_end_to_end() -> None:
    packed = zstandard.compress(CONTENT) + zstandard.compress(b"") + zstandard.compress(b"second\n")
    assert open_zstd(io.BytesIO(packed)).read() == CONTENT + b"second\n"
    assert list(open_zstd(io.BytesIO(packed)))[-1] == b"second\n"
    assert open_zstd(io.BytesIO(b"")).read() == b""


@pytest.mark.parametrize("lost", [1, 3, 5000, 200_000])
@pytest.mark.parametrize("before", [b"", zstandard.compress(b"a whole frame")])
def test_a_file_that_is_cut_off_is_an_error(before: bytes, lost: int) -> None:
    with pytest.raises(EOFError, match="inside a zstd frame"):
        open_zstd(io.BytesIO(before + zstandard.compress(CONTENT)[:-lost])).read()


def test_what_is_no_zstd_is_an_error() -> None:
    with pytest.raises(zstandard.ZstdError):
        open_zstd(io.BytesIO(zstandard.compress(b"whole") + b"not a frame")).read()


def test_a_bomb_is_read_in_bounded_memory() -> None:
    packer = zstandard.ZstdCompressor(level=19).compressobj()
    bomb = b"".join([*(packer.compress(bytes(1 << 22)) for _ in range(64)), packer.flush()])
    stream = open_zstd(io.BytesIO(bomb))
    tracemalloc.start()
    try:
        size = 0
        while block := stream.read(1 << 20):
            size += len(block)
        assert size == 64 << 22
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
