"""The process grid: which ranks there are, which groups they form, and how a process joins and leaves."""

from __future__ import annotations

from megatron_codemix.parallel.topology import Topology

__all__ = ["Topology"]
