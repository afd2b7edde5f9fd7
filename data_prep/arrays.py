"""Arrays to disk so that a full disk says so."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np


class _Written:
    """A file that numpy does not see as one: it would write past Python, and say of a full disk only how many items it wrote."""

    def __init__(self, handle: BinaryIO) -> None:
        self.write = handle.write


def save_array(place: Path | BinaryIO, array: np.ndarray) -> None:
    """`np.save`, to a path or an open file. Raises OSError with its number for what the system refuses."""
    if isinstance(place, Path):
        with open(place, "wb") as handle:
            save_array(handle, array)
    else:
        np.lib.format.write_array(_Written(place), array, allow_pickle=False)  # type: ignore[arg-type]
