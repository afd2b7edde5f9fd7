"""megatron-core as it is installed: which version, what has to be patched here, and doing it.

Importing this package patches nothing. A trainer process calls `install()` once, before it builds anything of
megatron-core (`parallel.Topology.join` does so). `report()` feeds `codemix doctor`.
"""

from __future__ import annotations

from megatron_codemix.compat.installer import PATCHES, TESTED_VERSION, PatchReport, install, installed, report
from megatron_codemix.compat.patch import Patch

__all__ = ["PATCHES", "TESTED_VERSION", "Patch", "PatchReport", "install", "installed", "report"]
