"""The table of patches, the version guard, and the one function that installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_codemix.compat.cpu import CPU_PATCHES
from megatron_codemix.compat.fixes import FIXES
from megatron_codemix.compat.patch import Patch
from megatron_codemix.errors import UserError

TESTED_VERSION = "0.16.1"
"""The megatron-core release that the patches were written for and every layout was proven with."""

PATCHES: tuple[Patch, ...] = (*CPU_PATCHES, *FIXES)
_installed: list[str] = []


@dataclass(frozen=True)
class PatchReport:
    """One row for `codemix doctor`."""

    name: str
    cures: str
    applies: bool | None
    """None: cannot be known, megatron-core is missing or of another version."""
    installed: bool


def megatron_version() -> str | None:
    """The installed version of megatron-core, or None; imports nothing of it."""
    try:
        return importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_version(allow_untested: bool) -> None:
    version = megatron_version()
    remedy = f"pip install megatron-core=={TESTED_VERSION}"
    if version is None:
        raise UserError(f"megatron-core is not installed; {remedy}")
    if version != TESTED_VERSION:
        if not allow_untested:
            raise UserError(
                f"megatron-core {version} is installed, but only {TESTED_VERSION} is proven here and some of its bugs are silent; {remedy}"
            )
        warnings.warn(f"megatron-core {version} has not been proven; patches are for {TESTED_VERSION}", stacklevel=3)


def install(*, skip: Sequence[str] = (), allow_untested: bool = False) -> tuple[str, ...]:
    """Install every patch that applies here; returns the names installed in this process so far.

    Idempotent. skip: names to leave out (for the tests that show a patch is still needed).
    Raises UserError when megatron-core is missing, or is another version than the tested one and
    `allow_untested` is false (then only a warning is given).
    """
    _check_version(allow_untested)
    known = {patch.name for patch in PATCHES}
    assert known.issuperset(skip), f"unknown patches: {sorted(set(skip) - known)}"
    for patch in PATCHES:
        if patch.name not in _installed and patch.name not in skip and patch.applies():
            patch.install()
            _installed.append(patch.name)
    return tuple(_installed)


def installed() -> tuple[str, ...]:
    """Names of the patches installed in this process."""
    return tuple(_installed)


def report() -> list[PatchReport]:
    """A row per patch: what it cures, whether it applies on this machine, whether it is installed in this process."""
    known = megatron_version() == TESTED_VERSION
    return [PatchReport(patch.name, patch.cures, patch.applies() if known else None, patch.name in _installed) for patch in PATCHES]
