"""Which code this is: a commit where the package lies in its repository, else its version."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

_SECONDS = 10.0


def code_revision() -> str:
    """The commit (40 digits, then "-dirty" where tracked files were altered); the version where none is known."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():  # not of a repository that merely contains the environment
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            found = ""
        if found:
            return found
    return version("megatron-codemix")
