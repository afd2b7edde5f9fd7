"""A copy of a rank's training state on the host, so that training goes on while it is written."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.pieces import Piece
from megatron_codemix.progress import say


class Snapshot:
    """One flat host buffer, used again by every save: a save costs its bytes in host memory once, and allocates nothing.

    On CUDA the buffer is page-locked where the system allows it, so that the copy runs at the speed of the bus. Where the state
    itself is kept on disk, so is the buffer: a mapped file, of which memory holds what it has room for.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where the buffer is to be a file; None: it is memory."""
        self._folder = folder
        self._buffer = torch.empty(0)

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Make the buffer that such pieces need. `take` does so too, in the middle of training."""
        elements = sum(len(piece.data) for piece in pieces)
        if self._buffer.numel() == elements:
            return
        self._buffer = torch.empty(0)  # the old one goes first: never two at a time
        if self._folder is not None and elements:
            self._buffer = _mapped(self._folder / "snapshot", elements)
            return
        self._buffer = torch.empty(elements, dtype=torch.float32)
        if elements and any(piece.data.is_cuda for piece in pieces):
            _pin(self._buffer)

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces with their data in the buffer: valid until the next `take`.

        Returns when everything has arrived, so the live tensors may change then.
        """
        self.reserve(pieces)
        copies, start = [], 0
        for piece in pieces:
            held = self._buffer[start : start + len(piece.data)]
            held.copy_(piece.data.detach(), non_blocking=True)
            copies.append(replace(piece, data=held))
            start += len(piece.data)
        if any(piece.data.is_cuda for piece in pieces):
            torch.cuda.current_stream().synchronize()
        return copies


def _mapped(path: Path, elements: int) -> Tensor:
    """fp32 (elements,) in a new file with all its room on the disk: writing to what has none would end the process."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, elements * torch.float32.itemsize)
    finally:
        os.close(descriptor)
    return torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)


def _pin(buffer: Tensor) -> None:
    """Page-lock ordinary memory as long as the tensor lives; a warning where the system does not allow it.

    Not `pin_memory=True`: torch's allocator rounds up to a power of two, which is up to twice a rank's part, and raises.
    """
    cudart: Any = torch.cuda.cudart()
    code = int(cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    if code == 0:
        weakref.finalize(buffer, cudart.cudaHostUnregister, buffer.data_ptr()).atexit = False
        return
    with suppress(RuntimeError):  # CUDA keeps the error for whoever launches the next kernel: let it be this one
        torch.zeros(1, device="cuda")
    say(
        f"warning: {buffer.nbytes / 2**30:,.1f} GiB of host memory could not be page-locked (CUDA error {code}; see `ulimit -l`): "
        "training waits longer for each checkpoint"
    )
