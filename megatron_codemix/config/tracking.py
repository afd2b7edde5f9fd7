"""Trackers outside the run folder, none of which a run needs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_codemix.config.section import Section


class WandbConfig(Section):
    """Weights & Biases: what TensorBoard gets, sent there too. Needs the package `wandb`; without it, or without a
    network, the run warns and goes on."""

    project: str = Field(min_length=1)
    """Project to log to."""
    entity: str | None = None
    """Team or user; null: the account's own."""
    group: str | None = None
    """Group of runs."""
    mode: Literal["online", "offline"] = "online"
    """offline: write into OUTPUT/wandb alone, for `wandb sync` later."""
