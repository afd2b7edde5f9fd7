"""Weights & Biases, by one line of the config; nothing of a run depends on it.

The package is imported only where it is asked for. What it raises, when it is missing, has no key or no network, or later on, is
one warning.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_codemix.config import WandbConfig
from megatron_codemix.progress import say

_INIT_SECONDS = 60
"""Training begins without it when the service does not answer for this long."""


class WandbRun:
    """The run at the service, of the main process alone."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def open(cls, settings: WandbConfig, run_folder: Path, name: str) -> WandbRun | None:
        """Begin, or continue, the run that belongs to a run folder; None, with a warning, where that cannot be."""
        try:
            wandb: Any = importlib.import_module("wandb")
            run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                mode=settings.mode,
                name=name,
                id=_id(run_folder, name),
                resume="allow",  # a restart of the run goes on in it
                dir=str(run_folder),
                settings=wandb.Settings(init_timeout=_INIT_SECONDS, login_timeout=_INIT_SECONDS, console="off", silent=True),
            )
            # ours, because its own only ever grows, and a run that goes back counts some steps twice
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            return cls(run)
        except ImportError:
            say("warning: logging.wandb: the package is not installed; `pip install wandb`, or leave the line out. Training goes on")
        except Exception as error:  # whatever it is, it is no reason not to train
            say(f"warning: logging.wandb: {_first_line(error)}; training goes on without it")
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send some values of a step; it does not wait for the network."""
        if self._run is None:
            return
        try:
            self._run.log({"step": step, **values})
        except Exception as error:
            self._run = None
            say(f"warning: logging.wandb: {_first_line(error)}; nothing more is sent")

    def close(self) -> None:
        """Send what is left."""
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish()
        except Exception as error:
            say(f"warning: logging.wandb: {_first_line(error)}; what it has not sent lies in the run folder's wandb/")


def _id(run_folder: Path, name: str) -> str:
    """The same for each start of a run, another for each run folder."""
    return hashlib.sha256(f"{name}\0{Path(run_folder).absolute()}".encode()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
