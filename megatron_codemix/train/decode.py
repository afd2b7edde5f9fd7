"""Real global batches in words, for `codemix check --batches`. Imports torch, so it is loaded only when asked for."""

from __future__ import annotations

from megatron_codemix.batches import Loader, describe_batches, describe_objective
from megatron_codemix.config import RunConfig
from megatron_codemix.train.inputs import Inputs


def batch_lines(config: RunConfig, inputs: Inputs, first_step: int, num_batches: int) -> list[str]:
    """Realised shares of some global batches, and samples of them in words; not beyond the stage of the first one."""
    stage = inputs.plan.stage_at(first_step)
    loader = Loader(
        inputs.plan,
        inputs.readers,
        token_num_bytes=inputs.tokenizer.token_num_bytes,
        micro_batch_size=config.micro_batch_size,
        tokenizer=inputs.tokenizer,
    )
    steps = range(first_step, min(first_step + num_batches, stage.end_step))
    batches = [batch for step in steps for batch in loader.batches(step)]
    words = describe_batches(batches, inputs.plan.sources, inputs.tokenizer, stage.mixture)
    if not stage.objective.is_clm:
        words += ["", *describe_objective(batches, inputs.plan.sources, inputs.tokenizer, stage.objective)]
    return [f"steps {steps.start} to {steps.stop} of stage '{stage.name}', decoded:", *words]
