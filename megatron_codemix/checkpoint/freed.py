"""Memory that is free inside this process, given back to the system.

glibc keeps what is freed for later, as long as anything lies behind it: one long-lived object of a few bytes can hold tens of
megabytes of the small blocks of a forward pass, and whether it does differs from run to run.
"""

from __future__ import annotations

import ctypes


def give_back_freed() -> None:
    """Return freed blocks to the system; nothing happens where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
