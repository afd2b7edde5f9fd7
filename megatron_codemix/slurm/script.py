"""Batch scripts as text: a header for Slurm, what the site asks for, and a body from launch_scripts as it is. No file is written here.

Every value is quoted for who reads it: Slurm, where it stands in a `#SBATCH` line, or the shell.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_codemix.errors import UserError
from megatron_codemix.slurm.site import SiteConfig

_PLAIN = re.compile(r"[A-Za-z0-9._/:,=@%+\[\]-]")
SCRIPTS = Path(__file__).resolve().parents[2] / "launch_scripts"
"""The folder of the bodies: beside the package, wherever both are installed."""


def render(
    body: str,
    *,
    options: Mapping[str, str | int | None],
    site: SiteConfig,
    variables: Mapping[str, str | int],
    arguments: Sequence[str] = (),
    more: Sequence[str] = (),
) -> str:
    """A whole batch script.

    body: name of a file in launch_scripts; its comment block, with the `#SBATCH` lines for use by hand, is left out.
    options: long option of sbatch → value; None leaves it out, "" is an option without value. They go before the site's own
    `sbatch` lines, and `more` (options of this command, whole) behind, since the last of two counts. variables: environment
    variables of the job. arguments: what the body sees as its own.
    Raises UserError for a value that holds a newline or another character that is not printable, and for a comment of the site's.
    """
    if any(option.startswith("--comment") for option in (*site.sbatch, *more)):
        raise UserError("sbatch: --comment: by it codemix knows its own jobs in the queue; leave it out")
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH {_option(name, value)}" for name, value in options.items() if value is not None]
    lines += [f"#SBATCH {_slurm_word(option)}" for option in (*site.sbatch, *more)]
    lines += [f"# Written by `codemix submit`; from the first 'set' on it is launch_scripts/{body}, as it is.", ""]
    lines += _prologue(site, variables)
    if arguments:
        lines.append("set -- " + " ".join(map(_shell_word, arguments)))
    return "\n".join(lines) + "\n\n" + _body(body)


def resources(site: SiteConfig, *, nodes: int, time: str | None = None) -> dict[str, str | int | None]:
    """Options of sbatch for jobs that train or evaluate on whole nodes: one task a node."""
    return {
        **placement(site),
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": site.gpus_per_node or None,
        "cpus-per-task": site.cpus_per_task,
        "mem": site.memory,
        "time": time or site.time,
    }


def placement(site: SiteConfig) -> dict[str, str | int | None]:
    """Options of sbatch that say where and for whom, of any job."""
    return {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "exclude": site.exclude,
    }


def site_variables(site: SiteConfig) -> dict[str, str | int]:
    """Environment variables that the bodies read, of any job. The user's own `environment` comes last, and wins."""
    variables: dict[str, str | int] = {"CODEMIX_PYTHON": site.python or sys.executable, "CODEMIX_SCRIPTS": str(SCRIPTS)}
    if site.container:
        variables["CODEMIX_CONTAINER"] = shlex.join(site.container)
    if site.srun:
        variables["CODEMIX_SRUN"] = shlex.join(site.srun)
    if site.network_interface:
        variables |= {"NCCL_SOCKET_IFNAME": site.network_interface, "GLOO_SOCKET_IFNAME": site.network_interface}
    return {**variables, **site.environment}


def log_pattern(folder: Path, name: str) -> str:
    """Value of --output: FOLDER/NAME with the folder's own % and \\ kept from Slurm, and those of `name` (%j, %x …) left to it."""
    return f"{str(folder).replace('%', '%%')}/{name}"


def _prologue(site: SiteConfig, variables: Mapping[str, str | int]) -> list[str]:
    exports = {**site_variables(site), **variables}
    lines = [f"export {name}={_shell_word(str(value))}" for name, value in exports.items()]
    if site.modules:
        lines.append("type module > /dev/null 2>&1 || . /etc/profile  # batch shells are no login shells")
        lines += [f"module load {_shell_word(module)} || exit 1" for module in site.modules]
    return lines + [_checked(line) for line in site.setup]


def _body(name: str) -> str:
    try:
        text = (SCRIPTS / name).read_text("utf-8")
    except OSError as error:
        raise UserError(f"{SCRIPTS / name}: cannot be read ({error.strerror}); install codemix anew") from None
    lines = text.splitlines(keepends=True)
    first = next((index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    return "".join(lines[first:])


def _option(name: str, value: str | int) -> str:
    return f"--{name}={_slurm_word(str(value))}" if value != "" else f"--{name}"


def _slurm_word(text: str) -> str:
    """One word of a `#SBATCH` line: sbatch reads quotes and # there, no $, and a backslash before \\ and " but not before a space."""
    if all(map(_PLAIN.fullmatch, _checked(text))):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shell_word(text: str) -> str:
    return shlex.quote(_checked(text))


def _checked(text: str) -> str:
    if not text.isprintable():
        raise UserError(f"{text!r}: holds a newline or another control character, which a batch script cannot; write it without")
    return text
