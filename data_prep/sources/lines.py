"""Lines of a file or of a part of it, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

_BLOCK_BYTES = 1 << 20


def read_lines(read: Callable[[int], bytes], start: int, end: float, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(offset of its first byte, line without its line end) of each line that begins at start ≤ offset < end.

    read: gives the next bytes, from `start` on (from start − 1 where start > 0: a line begins at `start` only behind a line
    end). A line of more than `limit` bytes comes as None and was never held in memory.
    """
    begins = start - 1 if start else 0
    skipping = start > 0
    parts: list[bytes] = []
    held = 0  # bytes of the unfinished line; `parts` has them while they are within the limit
    while begins < end and not (skipping and begins + held >= end) and (block := read(_BLOCK_BYTES)):
        *whole, rest = block.split(b"\n")
        for line in whole:
            length = held + len(line)
            if not skipping:
                complete = line if not held else b"".join((*parts, line)) if length <= limit else None
                yield begins, complete if length <= limit else None
            skipping = False
            begins += length + 1
            parts, held = [], 0
            if begins >= end:
                return
        held += len(rest)
        if held > limit or skipping:
            parts = []
        else:
            parts.append(rest)
    if held and not skipping and begins < end:
        yield begins, b"".join(parts) if held <= limit else None
