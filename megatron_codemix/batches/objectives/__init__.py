"""What a stage changes of its windows before they become batches: fill-in-the-middle, prefixes, replaced inputs, loss weights.

    change = WindowObjective(stage.objective, tokenizer, plan.sources, plan.seed)
    change(block)

Each part is one class with `apply(block)`, picked from `objective.PARTS` by the name of its config section.
"""

from megatron_codemix.batches.block import Block
from megatron_codemix.batches.objectives.objective import WindowObjective
from megatron_codemix.batches.objectives.part import Context, Part

__all__ = ["Block", "Context", "Part", "WindowObjective"]
