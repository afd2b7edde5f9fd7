"""A copy of a rank's training state on the host, so that training goes on while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from megatron_codemix.pieces import Piece


class Snapshot:
    """One flat host buffer, used again by every save: a save costs its bytes in host memory once, and allocates nothing.

    On CUDA the buffer is page-locked, so that the copy runs at the speed of the bus.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces with their data in the buffer: valid until the next `take`.

        Returns when everything has arrived, so the live tensors may change then.
        """
        elements = sum(len(piece.data) for piece in pieces)
        on_gpu = any(piece.data.is_cuda for piece in pieces)
        if self._buffer.numel() != elements or self._buffer.is_pinned() != on_gpu:
            self._buffer = torch.empty(0)  # the old one goes first: never two at a time
            self._buffer = torch.empty(elements, dtype=torch.float32, pin_memory=on_gpu)
        copies, start = [], 0
        for piece in pieces:
            held = self._buffer[start : start + len(piece.data)]
            held.copy_(piece.data.detach(), non_blocking=True)
            copies.append(replace(piece, data=held))
            start += len(piece.data)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return copies
