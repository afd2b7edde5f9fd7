"""A Slurm for the tests here: brought up once (about a second), handed to each test with no jobs and all nodes idle."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
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


@pytest.fixture(scope="session")
def slurm_corpus(world: Any, write_split: Callable[..., None]) -> Path:
    """A tokenizer and a source on the shared folder."""
    folder = world.shared / "corpus"
    _module("runs").write_corpus(folder, write_split)
    return folder


@pytest.fixture
def new_run(cluster: Any, slurm_corpus: Path) -> Callable[..., Any]:
    """`new_run(NAME, output=None, site={…}, **config)`: a TrainingRun of world/runs.py; config: sections of the run config."""
    runs = _module("runs")

    def make(name: str, output: Path | None = None, site: Mapping[str, Any] = MappingProxyType({}), **config: Any) -> Any:
        return runs.TrainingRun(cluster, cluster.shared / "runs" / name, slurm_corpus, output, config, dict(site))

    return make


@pytest.fixture(scope="session")
def undisturbed(world: Any, slurm_corpus: Path) -> Callable[..., dict[str, Any]]:
    """`undisturbed(nproc, **config)`: the outcome of such a run on one machine that nobody disturbs."""
    runs = _module("runs")
    found: dict[str, dict[str, Any]] = {}

    def outcome(nproc: int, **config: Any) -> dict[str, Any]:
        key = repr((nproc, config))
        if key not in found:
            run = runs.TrainingRun(world, world.shared / "undisturbed" / str(len(found)), slurm_corpus, None, config, {})
            run.train_here(nproc)
            found[key] = run.outcome()
        return found[key]

    return outcome
