"""Forward passes through all stages of a model, whichever library wraps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from megatron_codemix.engine.chunks import Forward
from megatron_codemix.engine.interface import TokenBatch
from megatron_codemix.model import LanguageModel
from megatron_codemix.parallel import Topology


class Passes(Protocol):
    """The chunks of a rank under a library's wrappers, and forward passes through all stages."""

    topology: Topology
    chunks: list[LanguageModel]

    def eval(self) -> None:
        """Evaluation mode, with the weights of the last step. Collective."""
        ...

    def run(self, forward: Forward, batches: Sequence[TokenBatch], *, mode: str) -> list[Any]:
        """As `chunks.Replicas.run`, "evaluate" and "collect" at least."""
        ...
