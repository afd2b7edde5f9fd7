"""The parts of a stage's objective, one after the other."""

from __future__ import annotations

from typing import Any

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.corruption import InputCorruption
from megatron_codemix.batches.objectives.fim import FillInTheMiddle
from megatron_codemix.batches.objectives.part import Context, Part
from megatron_codemix.batches.objectives.prefix import VisiblePrefix
from megatron_codemix.batches.objectives.weights import LossWeights
from megatron_codemix.config import Objective
from megatron_codemix.tokenizer import Tokenizer

PARTS: dict[str, Any] = {"fim": FillInTheMiddle, "prefix": VisiblePrefix, "corruption": InputCorruption, "loss_weights": LossWeights}
"""Field of `config.Objective` → its class, in the order in which they are applied."""


class WindowObjective:
    """Applies an objective to blocks of windows. Holds no state that decides anything: a window comes out the same at any step and rank."""

    def __init__(self, objective: Objective, tokenizer: Tokenizer, sources: tuple[str, ...], seed: int) -> None:
        """The tokenizer must have `objective.symbols`; sources: names that `Block.source_ids` index; seed: of the data."""
        context = Context(tokenizer, sources, seed)
        settings = {name: getattr(objective, name) for name in PARTS}
        self.parts: list[Part] = [PARTS[name](given, context) for name, given in settings.items() if given]

    def __call__(self, block: Block) -> None:
        """Change the block in place."""
        for part in self.parts:
            part.apply(block)
