"""How long a rank works on a step by itself: until it has to wait for the gradients of other data-parallel ranks."""

from __future__ import annotations

import time

import torch


class OwnTime:
    """A stopwatch from `begin` to the last `end`; on a GPU it times the device, without making the host wait."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        self._begun = self._ended = 0.0

    def begin(self) -> None:
        """Work begins here."""
        if self._events:
            self._events[0].record()
        self._begun = self._ended = time.perf_counter()

    def end(self) -> None:
        """What was queued up to here was this rank's own work."""
        if self._events:
            self._events[1].record()
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Between the two. On a GPU, to be asked when the device has come past `end` (it waits for it otherwise)."""
        if self._events:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1e3
        return self._ended - self._begun
