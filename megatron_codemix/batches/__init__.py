"""The plan's samples as tensors: `Batch`, the loader of training batches, validation batches, and what they hold in words."""

from megatron_codemix.batches.batch import Batch, assemble
from megatron_codemix.batches.block import Block, number_documents
from megatron_codemix.batches.describe import describe_batches
from megatron_codemix.batches.describe_objective import describe_objective
from megatron_codemix.batches.loader import Loader, validation_batches
from megatron_codemix.batches.objectives import WindowObjective
from megatron_codemix.batches.space import SampleSpace, WindowSpace

__all__ = [
    "Batch",
    "Block",
    "Loader",
    "SampleSpace",
    "WindowObjective",
    "WindowSpace",
    "assemble",
    "describe_batches",
    "describe_objective",
    "number_documents",
    "validation_batches",
]
