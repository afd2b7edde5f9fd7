"""What a preflight asks of the nodes: the section `preflight` of a site file."""

from __future__ import annotations

from pydantic import Field

from megatron_codemix.config.section import CountOrZero, Section


class PreflightConfig(Section):
    """Each node is looked at before training is started on it."""

    enabled: bool = True
    """Whether a job looks at its nodes first."""
    gpus: CountOrZero | None = None
    """GPUs that each node must show; null: as many as gpus_per_node of the site says, and where it says nothing any number."""
    minimum_gib_free: float = Field(default=10.0, ge=0.0)
    """GiB that must be free in the run's folder, in the temporary folder and in node_storage."""
    clock_skew_seconds: float = Field(default=2.0, gt=0.0)
    """How far a node's clock may be from those of the others."""
    slowest: float = Field(default=0.5, ge=0.0, le=1.0)
    """Least share of the median node's speed (matrix product, all-reduce) that a node with GPUs must reach. Nodes without GPUs are
    measured, not judged, by this: their cores may be shared."""
    matmul_tflops: float = Field(default=0.0, ge=0.0)
    """TFLOP/s that a matrix product must reach on each device, whatever the others do."""
    all_reduce_gib: float = Field(default=0.0, ge=0.0)
    """GiB/s of bus bandwidth that an all-reduce between two nodes must reach, whatever the others do."""
    stall_seconds: float = Field(default=5.0, gt=0.0)
    """A node that makes no progress for so long while half of the others are ready counts as hung."""
    seconds: float = Field(default=60.0, gt=0.0)
    """A node that is not ready by then counts as hung, even if it is busy: raise it where Python starts slowly from a cold
    shared file system."""
    memory_gib: float = Field(default=2.0, ge=0.0)
    """GiB of a GPU's memory that may be in use before training starts; more is a process that was left behind."""

    def of_site(self, gpus_per_node: int) -> PreflightConfig:
        """With the number of GPUs that the site says, where this says none. gpus_per_node: 0 says nothing."""
        return self.model_copy(update={"gpus": gpus_per_node or None}) if self.gpus is None else self

    def as_json(self, gpus_per_node: int) -> str:
        """For `codemix preflight --settings`, in one line."""
        return self.of_site(gpus_per_node).model_dump_json()
