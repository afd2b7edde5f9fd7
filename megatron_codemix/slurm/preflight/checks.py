"""What a node looks at on its own, without torch: disks, versions, GPUs as the driver sees them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROBE_BYTES = 1 << 20
_MIB, _GIB = 1 << 20, 1 << 30
_SMI_SECONDS = 15.0
_SHARED_SECONDS = 3.0
"""A network file system may show one node's new file to another a little later."""
_SMI_FIELDS = (
    "index",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
)
_PACKAGES = ("megatron-codemix", "megatron-core", "numpy")


class CheckFailed(Exception):
    """A check that found what makes the node useless; its text is the line for people."""


def check_disk(path: Path, minimum_gib: float) -> dict[str, Any]:
    """Write a MiB, flush it, read it back, delete it; then what is free. Returns free_gib, write_mib_per_s, clock_ahead_seconds.

    A quota that is used up, or a file system that has become read-only, does not show in what `df` tells. clock_ahead_seconds: of
    this node's clock before the one that dates files, which on a network file system is the server's.

    Raises CheckFailed.
    """
    content = secrets.token_bytes(_PROBE_BYTES)
    probe = path / f".preflight-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with open(probe, "xb", buffering=0) as handle:
            rest = memoryview(content)
            while rest:
                rest = rest[handle.write(rest) :]
            os.fsync(handle.fileno())
            spent, now, written = time.monotonic() - began, time.time(), os.fstat(handle.fileno()).st_mtime
        if probe.read_bytes() != content:
            raise CheckFailed(f"{path}: what is read is not what was written")
        state = os.statvfs(path)
    except OSError as error:
        raise CheckFailed(f"{path}: a file of 1 MiB cannot be written and read ({error.strerror})") from None
    finally:
        # whoever cannot delete what it has written is told by the write of the next one
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    free = state.f_bavail * state.f_frsize / _GIB
    if free < minimum_gib:
        raise CheckFailed(f"{path}: {free:.1f} GiB free, {minimum_gib:g} asked for")
    if state.f_files and not state.f_favail:
        raise CheckFailed(f"{path}: no file can be made, its inodes are used up")
    return {
        "path": str(path),
        "free_gib": round(free, 2),
        "write_mib_per_s": round(_PROBE_BYTES / _MIB / max(spent, 1e-6), 1),
        "clock_ahead_seconds": round(now - written, 3),
    }


def check_shared(path: str, text: str) -> dict[str, Any]:
    """Whether a file that the coordinator has just written is seen here. Raises CheckFailed: the mount is missing, or is another."""
    end = time.monotonic() + _SHARED_SECONDS
    while True:
        try:
            if Path(path).read_text("utf-8") == text:
                return {"folder": str(Path(path).parent)}
            why = "holds something else"
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "is no text"
        if time.monotonic() > end:
            folder = Path(path).parent
            raise CheckFailed(f"{folder}: a file just written there by the batch script is not seen ({why}); look at the mount")
        time.sleep(_SHARED_SECONDS / 20)


def check_versions() -> dict[str, Any]:
    """What must be the same on all nodes; torch tells its own. "code": a digest of this package's source, whose version may stand still."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}, "code": _code_digest()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _code_digest() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """GPUs that this process may use, from files and the environment alone: asking the driver may hang."""
    present = sum(path.name.removeprefix("nvidia").isdigit() for path in devices.glob("nvidia*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"]))


def check_gpus(visible: int, expected: int | None, memory_gib: float) -> dict[str, Any]:
    """GPUs as the driver sees them. Raises CheckFailed: too few, uncorrected memory errors, slowed down by heat or power, in use."""
    if expected is not None and visible < expected:
        raise CheckFailed(f"{visible} of {expected} GPUs are visible")
    if not visible or shutil.which("nvidia-smi") is None:
        return {"visible": visible, "devices": []}
    command = ["nvidia-smi", "--query-gpu=" + ",".join(_SMI_FIELDS), "--format=csv,noheader,nounits"]
    if ours := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={ours}")  # the others may be another job's
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"nvidia-smi does not answer within {_SMI_SECONDS:g} s") from None
    if done.returncode:
        raise CheckFailed(f"nvidia-smi failed: {_last_line(done.stdout + done.stderr)}")
    return {"visible": visible, "devices": parse_gpus(done.stdout, memory_gib)}


def parse_gpus(text: str, memory_gib: float) -> list[dict[str, str]]:
    """nvidia-smi's table. Raises CheckFailed for a GPU that is not to be used; what a GPU does not tell ("[N/A]") is no fault."""
    values = [[value.strip() for value in line.split(",")] for line in text.splitlines() if line.strip()]
    rows: list[dict[str, str]] = [dict(zip(_SMI_FIELDS, row)) for row in values]
    for row in rows:
        errors = row.get("ecc.errors.uncorrected.volatile.total", "")
        if errors.isdigit() and int(errors):
            raise CheckFailed(f"GPU {row['index']}: {errors} uncorrected memory errors since it was started; reset or replace it")
        if row.get("clocks_throttle_reasons.hw_slowdown") == "Active":
            raise CheckFailed(f"GPU {row['index']}: slowed down by its hardware (heat or power; {row.get('temperature.gpu', '?')} °C)")
        used = row.get("memory.used", "")
        if used.isdigit() and int(used) / 1024 > memory_gib:
            raise CheckFailed(f"GPU {row['index']}: {int(used) / 1024:.1f} GiB of its memory are in use, by a process that was left behind")
    return rows


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"
