"""Marks what starts trainers, environments or commands as slow, so that `make check` takes about a minute.

One thread a process, before anything imports torch: tests run side by side, start processes of their own, and compare the
bits of both, which depend on how many threads share a sum.
"""

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

_SLOW = ("dist/", "gpu/", "slurm/", "unit/train/", "unit/study/", "unit/eval/", "unit/test_cli", "unit/test_compat", "unit/test_convert")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by place: a test file that belongs to one of these is slow as a whole."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(_SLOW):
            item.add_marker(pytest.mark.slow)
