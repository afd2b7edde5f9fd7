"""From a declared mixture to the exact order of samples, and from consumed batches back to an audit (docs/mixture.md).

Pure functions on numpy and fractions; nothing here imports torch or touches shards.
"""

from megatron_codemix.mixture.cautions import cautions, code_share, repetition_cautions
from megatron_codemix.mixture.compile import compile_plan
from megatron_codemix.mixture.interleave import Interleaving, Piece, bound
from megatron_codemix.mixture.ledger import Ledger
from megatron_codemix.mixture.lineage import Interval, Lineage
from megatron_codemix.mixture.permutation import Permutation, epoch_order, order_key
from megatron_codemix.mixture.plan import Plan, Samples
from megatron_codemix.mixture.stage_plan import StagePlan
from megatron_codemix.mixture.staircase import Staircase
from megatron_codemix.mixture.stored import FORMER_PLANS, disagreement, former_plan, keep_plan
from megatron_codemix.mixture.table import plan_table

__all__ = [
    "FORMER_PLANS",
    "Interleaving",
    "Interval",
    "Ledger",
    "Lineage",
    "Permutation",
    "Piece",
    "Plan",
    "Samples",
    "StagePlan",
    "Staircase",
    "bound",
    "cautions",
    "code_share",
    "compile_plan",
    "disagreement",
    "epoch_order",
    "former_plan",
    "keep_plan",
    "order_key",
    "plan_table",
    "repetition_cautions",
]
