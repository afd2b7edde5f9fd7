"""Guards of a run: NaN and loss spikes, going back and leaving out, slow ranks, garbage collection in step."""

from megatron_codemix.train.guards.garbage import Garbage
from megatron_codemix.train.guards.guard import Guard, Verdict
from megatron_codemix.train.guards.history import History, Usual
from megatron_codemix.train.guards.ranks import Pace, RankReport, RankState
from megatron_codemix.train.guards.rewind import give_up, plan_skip
from megatron_codemix.train.guards.skips import SKIPS_NAME, PlannedSkip, PlannedSkips

__all__ = [
    "SKIPS_NAME",
    "Garbage",
    "Guard",
    "History",
    "Pace",
    "PlannedSkip",
    "PlannedSkips",
    "RankReport",
    "RankState",
    "Usual",
    "Verdict",
    "give_up",
    "plan_skip",
]
