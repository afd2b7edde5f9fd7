"""Where a stage ran: versions and machine, recorded when it runs and printed in the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform

_PACKAGES = (
    "megatron-codemix",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "gigatoken",
    "numpy",
    "webdataset",
)


def describe_environment() -> dict[str, str]:
    """Name → version of Python, the packages that decide results, and the machine. Imports none of them."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cores": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
