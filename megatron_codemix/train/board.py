"""What is drawn of a run: scalars by step, for TensorBoard and, if the config says so, for Weights & Biases.

A disk or a network that refuses them costs the plots, not the run: the log has it all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from megatron_codemix.config import LoggingConfig
from megatron_codemix.progress import say
from megatron_codemix.train.weights_and_biases import WandbRun


class Board:
    """Of the main process alone."""

    def __init__(self, run_folder: Path, settings: LoggingConfig, name: str, first_step: int) -> None:
        """name: of the run; first_step: updates done already."""
        self._folder, self._draws = Path(run_folder), settings.tensorboard
        self._writer: SummaryWriter | None = None
        self.begin(first_step)
        self._wandb = WandbRun.open(settings.wandb, self._folder, name) if settings.wandb else None

    def begin(self, first_step: int) -> None:
        """Hide what was drawn above step `first_step`: by a killed process, or before the run went back."""
        if self._draws:
            with self._drawing() as writer:
                if writer:
                    writer.close()
                self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        """Draw `group/name` at a step; what is None is left out."""
        known = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        with self._drawing() as writer:
            for name, value in known.items():
                if writer:
                    writer.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(step, known)

    def flush(self) -> None:
        """Have everything on disk."""
        with self._drawing() as writer:
            if writer:
                writer.flush()

    def close(self) -> None:
        """Flush and close."""
        with self._drawing() as writer:
            if writer:
                writer.close()
        if self._wandb:
            self._wandb.close()

    @contextmanager
    def _drawing(self) -> Iterator[SummaryWriter | None]:
        try:
            yield self._writer
        except OSError as error:
            self._writer, self._draws = None, False
            say(f"warning: nothing more is drawn for TensorBoard ({error}); the log has it all")
