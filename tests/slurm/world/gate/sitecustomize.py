"""Lets a test hold trainers at a place, so that what it does to them falls where it says and not where the clock does.

On PYTHONPATH of a job (runs.py); every python of it imports this file, and only trainers get anything from it. In the folder
CODEMIX_GATE, a test writes the file `step-START` (START: how often Slurm had started the job anew) with a number: no rank of
that start makes a step behind that many. `publish-START`: the main rank's saving thread stands still right before the rename
that publishes that step, past every check. Who is held says so by a file `held-…` with its process id, and goes on once the
test has deleted the order.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_START = os.environ.get("SLURM_RESTART_COUNT", "0")


def _hold(order: str, step: int) -> None:
    folder = Path(os.environ["CODEMIX_GATE"])
    path = folder / f"{order}-{_START}"
    held = folder / f"held-{path.name}-rank-{os.environ['RANK']}"
    while path.exists() and step >= int(path.read_text() or sys.maxsize):
        if not held.exists():
            held.with_suffix(".new").write_text(str(os.getpid()))
            held.with_suffix(".new").rename(held)
        time.sleep(0.05)


def _gate_steps(module: ModuleType) -> None:
    engine: Any = module.MegatronEngine
    original = engine.train_step

    def train_step(self: Any, *arguments: Any, **options: Any) -> Any:
        _hold("step", self.step)
        return original(self, *arguments, **options)

    engine.train_step = train_step


def _gate_publication(module: ModuleType) -> None:
    saver: Any = module.Saver
    original = saver._rename

    def rename(self: Any, folder: Path, target: Path) -> Any:
        _hold("publish", int(target.name.removeprefix("step-")))
        return original(self, folder, target)

    saver._rename = rename


_GATES: dict[str, Callable[[ModuleType], None]] = {
    "megatron_codemix.engine.megatron": _gate_steps,
    "megatron_codemix.checkpoint.publish": _gate_publication,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Patches the modules above right behind their import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _GATES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _GATES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "CODEMIX_GATE" in os.environ and "RANK" in os.environ:
    sys.meta_path.insert(0, _Finder())
