"""The process grid as DeepSpeed asks for it: a "model parallelism unit" in the words of Megatron-LM."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_codemix.parallel import Topology


class Grid:
    """What DeepSpeed calls `mpu`. Its data-parallel ranks are all that see other tokens: data × context.

    It must have no `initialize_sequence_parallel`: DeepSpeed would then take it for another kind and forget model parallelism.
    """

    def __init__(self, topology: Topology) -> None:
        """Reads the topology that is joined now."""
        self._topology = topology
        self._model = parallel_state.get_model_parallel_group()

    def get_data_parallel_group(self) -> Any:
        """Ranks that hold the same part of the model."""
        return self._topology.data_and_context.group

    def get_data_parallel_rank(self) -> int:
        """Place among them."""
        return self._topology.data_and_context.rank

    def get_data_parallel_world_size(self) -> int:
        """Their number."""
        return self._topology.data_and_context.size

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Them, by their rank in the world."""
        return dist.get_process_group_ranks(self.get_data_parallel_group())

    def get_model_parallel_group(self) -> Any:
        """Ranks that share one copy of the model: tensor × pipeline."""
        return self._model

    def get_model_parallel_rank(self) -> int:
        """Place among them, tensor-parallel ranks first."""
        return self._topology.pipeline.rank * self._topology.tensor.size + self._topology.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        """Their number."""
        return self._topology.pipeline.size * self._topology.tensor.size

    def get_tensor_model_parallel_group(self) -> Any:
        """Ranks that share matrices."""
        return self._topology.tensor.group

    def get_tensor_model_parallel_rank(self) -> int:
        """Place among them."""
        return self._topology.tensor.rank

    def get_tensor_model_parallel_world_size(self) -> int:
        """Their number."""
        return self._topology.tensor.size

    def get_pipeline_model_parallel_group(self) -> Any:
        """Ranks that share layers."""
        return self._topology.pipeline.group

    def get_pipeline_model_parallel_rank(self) -> int:
        """Place among them."""
        return self._topology.pipeline.rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Their number."""
        return self._topology.pipeline.size
