"""Marks what starts trainers, environments or commands as slow, so that `make check` takes about a minute."""

from pathlib import Path

import pytest

_SLOW = ("dist/", "gpu/", "slurm/", "unit/train/", "unit/study/", "unit/eval/", "unit/test_cli", "unit/test_compat", "unit/test_convert")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by place: a test file that belongs to one of these is slow as a whole."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(_SLOW):
            item.add_marker(pytest.mark.slow)
