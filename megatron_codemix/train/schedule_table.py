"""Learning rates and batch sizes of each stage, in words: what `codemix check` prints beside the plan."""

from __future__ import annotations

from megatron_codemix.config import LearningRate, RunConfig
from megatron_codemix.mixture import Plan, StagePlan
from megatron_codemix.mixture.table import align
from megatron_codemix.train.schedule import Schedule

_SHOWN_SIZES = 6


def schedule_table(config: RunConfig, plan: Plan) -> list[str]:
    """Lines: each stage with the step it begins at and its first, highest and last learning rate; then the staircases of ramps."""
    schedule = Schedule(config)
    rows: list[tuple[str, ...]] = [("stage", "from step", "from token", "shape", "first rate", "highest", "last rate")]
    for stage in plan.stages:
        highest = max(schedule.at(step) for step in schedule.turns(stage.first_step, stage.end_step))
        ends = (schedule.at(stage.first_step), highest, schedule.at(stage.end_step - 1))
        begins = sum(before.tokens for before in plan.stages[: stage.index])
        rows.append((stage.name, f"{stage.first_step:,}", f"{begins:,}", _shape(stage), *(f"{rate:.4g}" for rate in ends)))
    return [*align(rows, left=(0, 3)), *(_staircase(stage) for stage in plan.stages if len(stage.batches.treads) > 1)]


def _shape(stage: StagePlan) -> str:
    rate = stage.learning_rate
    if not isinstance(rate, LearningRate):
        return "goes on"
    return f"{rate.shape}, {rate.decay_shape}" if rate.shape == "wsd" else rate.shape


def _staircase(stage: StagePlan) -> str:
    """'stage 'main': batches of 64 from step 0, 128 from step 10, … (12 more), 1,024 from step 90'."""
    treads = stage.batches.treads
    left_out = len(treads) - _SHOWN_SIZES
    shown = [f"{tread.size:,} from step {stage.first_step + tread.first:,}" for tread in treads]
    if left_out > 0:
        shown = [*shown[: _SHOWN_SIZES - 1], f"… ({left_out} more)", shown[-1]]
    return f"stage '{stage.name}': batches of {', '.join(shown)}"
