"""A Slurm for the tests here: brought up once (about a second), handed to each test with no jobs and all nodes idle."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_WORLD = Path(__file__).parent / "world"


def _module(name: str) -> Any:
    """A file of world/, which is no package: tests import by path."""
    spec = importlib.util.spec_from_file_location(f"slurm_{name}", _WORLD / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The cluster of this session; skips where there can be none. Every worker of xdist has one: they do not see each other."""
    module = _module("cluster")
    if why := module.reason_against():
        pytest.skip(f"no Slurm here: {why}")
    cluster = module.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(world: Any) -> Iterator[Any]:
    """world/cluster.py's Cluster, with no jobs and all nodes idle, whatever the test before has left."""
    yield world
    world.reset()
