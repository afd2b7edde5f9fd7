"""`codemix doctor`: what is installed here, what will be used, and what is patched and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from megatron_codemix import compat
from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.kernels import choices

REQUIRED = (
    "torch",
    "megatron-core",
    "deepspeed",
    "sentencepiece",
    "gigatoken",
    "webdataset",
    "tensorboard",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
)
# package → (the module whose presence proves it, what it would bring, how to get it). Modules are looked for, never imported:
# importing a broken extension could take the doctor down with it.
OPTIONAL = {
    "NVIDIA Apex": ("amp_C", "fused optimizer and clipping", "build it from NVIDIA's repository (requirements-gpu.txt)"),
    "Transformer Engine": ("transformer_engine", "fused layers, FP8", "pip install -r requirements-gpu.txt"),
    "flash-attn": ("flash_attn", "attention kernels", "pip install flash-attn --no-build-isolation"),
    "Liger": ("liger_kernel", "fused norm, SwiGLU, cross-entropy", "pip install -r requirements-gpu.txt"),
    "Triton": ("triton", "our own fused operators", "comes with the CUDA build of torch"),
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [
            f"{torch.cuda.get_device_name(index)}, {torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"
            for index in range(torch.cuda.device_count())
        ]
    return [f"CPU only ({torch.get_num_threads()} threads)"]


def _apex_notes() -> list[str]:
    # The package named "apex" on PyPI is an unrelated web toolkit; only NVIDIA's brings amp_C.
    if _version("apex") and importlib.util.find_spec("amp_C") is None:
        return ["a package named 'apex' is installed that is not NVIDIA Apex (no amp_C extension): pip uninstall apex"]
    return []


def diagnose() -> dict[str, Any]:
    """Everything the doctor knows, as JSON values."""
    problems = [f"{package} is missing: pip install -r requirements.txt" for package in REQUIRED if _version(package) is None]
    problems += _apex_notes()
    version = _version("megatron-core")
    if version not in (None, compat.TESTED_VERSION):
        problems.append(f"megatron-core {version} has not been proven: pip install megatron-core=={compat.TESTED_VERSION}")
    return {
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "devices": _devices(),
            "cuda": torch.version.cuda,
            "bf16": torch.cuda.is_bf16_supported() if torch.cuda.is_available() else True,
            "compiler": shutil.which("g++") or None,
        },
        "packages": {package: _version(package) for package in REQUIRED},
        "optional": {
            name: {"present": importlib.util.find_spec(module) is not None, "brings": brings, "get": get}
            for name, (module, brings, get) in OPTIONAL.items()
        },
        "operators": [asdict(choice) for choice in choices(torch.device("cuda" if torch.cuda.is_available() else "cpu"))],
        "patches": [asdict(row) for row in compat.report()],
        "problems": problems,
    }


def _print(found: dict[str, Any]) -> None:
    console = Console()
    machine = Table(title="This machine", title_justify="left", show_header=False)
    for key, value in found["machine"].items():
        machine.add_row(key, "; ".join(value) if isinstance(value, list) else str(value))
    packages = Table("package", "version", title="Packages", title_justify="left")
    for name, version in found["packages"].items():
        packages.add_row(name, version or "missing")
    optional = Table("optional", "here", "brings", "how to get it", title="Optional packages", title_justify="left")
    for name, row in found["optional"].items():
        optional.add_row(name, "yes" if row["present"] else "no", row["brings"], "" if row["present"] else row["get"])
    patches = Table(
        "patch", "applies", "symptom it cures", title="megatron-core patches, installed by trainer processes", title_justify="left"
    )
    for row in found["patches"]:
        patches.add_row(row["name"], {True: "yes", False: "no", None: "unknown"}[row["applies"]], row["cures"])
    operators = Table("operator", "implementation", "why", title="Operators of the trainer", title_justify="left")
    for row in found["operators"]:
        operators.add_row(row["operator"], row["implementation"], row["reason"])
    for table in (machine, packages, optional, operators, patches):
        console.print(table)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", highlight=False, style="bold")
    if not found["problems"]:
        console.print("no problems found", highlight=False)


def main(argv: Sequence[str]) -> int:
    """`codemix doctor [--json]`; exit code 1 when something is missing or wrong."""
    parser = ArgumentParser(prog="codemix doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    arguments = parser.parse_args(argv)
    found = diagnose()
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 1 if found["problems"] else 0
