"""`codemix preflight`: is this machine, or are these nodes of a job, fit to train on?"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from megatron_codemix.arguments import ArgumentParser
from megatron_codemix.errors import UserError
from megatron_codemix.files import write_json, write_text
from megatron_codemix.progress import say
from megatron_codemix.slurm.preflight.coordinator import Coordinator
from megatron_codemix.slurm.preflight.report import Report
from megatron_codemix.slurm.preflight.settings import PreflightConfig
from megatron_codemix.slurm.preflight.verdict import Verdict, decide
from megatron_codemix.slurm.site import load_site

TOO_FEW, NO_USE = 1, 3
"""Exit codes: others than the bad nodes are needed; no others would do."""
VERDICT_NAME = "verdict.json"
_ENDED = 143
"""128 + SIGTERM."""
_AGENT = "megatron_codemix.slurm.preflight.agent"
_SRUN = ("srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--overlap", "--mpi=none", "--quit-on-interrupt")
_DESCRIPTION = f"""Look at this machine, or at the nodes of the Slurm job that this is called in: GPUs (errors, heat, memory in use), a
matrix product and an all-reduce (right, and as fast as on the others), disks, clocks, versions.

  codemix preflight                                this machine
  codemix preflight --nodes n1,n2,n3 --need 2      in a job (salloc, sbatch): these nodes, of which two are to train

Exit code 0: there are as many good nodes as needed. {TOO_FEW}: there are not. {NO_USE}: and others would not help, since all have
the same fault. What was found lies in the folder --out: a file a node, and {VERDICT_NAME}."""


def main(argv: Sequence[str]) -> int:
    """Run the verb. Raises UserError for wrong input."""
    given = _parser().parse_args(argv)
    if given.settings is None:
        site = load_site(given.site)
        config = site.preflight.of_site(site.gpus_per_node)
    else:
        config = _settings(given.settings)
    here = os.environ.get("SLURMD_NODENAME") or platform.node()
    nodes = _expand(given.nodes) if given.nodes else [here]
    needed = given.need if given.need is not None else len(nodes)
    if not 1 <= needed <= len(nodes):
        raise UserError(f"--need {needed}: give a number from 1 to the {len(nodes)} of --nodes")
    if given.nodes and shutil.which("srun") is None:
        raise UserError("--nodes: there is no srun here to reach other nodes with; call it in a Slurm job, outside of a container")

    began = time.monotonic()
    if given.batch:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_ENDED))  # leave no srun behind
        say(f"preflight: looking at {len(nodes)} node(s), {needed} needed")
    token = _leave_token(given.out)
    options = {
        "paths": {"run": str(given.run.absolute()), "tmp": None, **({"node storage": given.storage} if given.storage else {})},
        "minimum_gib_free": config.minimum_gib_free,
        "memory_gib": config.memory_gib,
        "gpus": config.gpus,
        "token": token,
    }
    try:
        coordinator = Coordinator(nodes, here, config)
        reports, whole = coordinator.examine(lambda node: _command(node if given.nodes else None, options), _environment())
    finally:
        if token is not None:
            Path(token[0]).unlink(missing_ok=True)
    verdict = decide(reports, needed)
    if whole and verdict.goes_on:
        verdict = Verdict((), verdict.chosen + verdict.spare, verdict.bad, whole)
    lines = [*verdict.lines(needed, len(nodes)), *_notes(reports, config)]
    spent = time.monotonic() - began
    _keep(given.out, reports, verdict, lines, spent)
    _tell(given.batch, given.json, reports, verdict, lines, spent)
    return 0 if verdict.goes_on else NO_USE if verdict.stop else TOO_FEW


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="codemix preflight", description=_DESCRIPTION)
    parser.add_argument("--nodes", metavar="LIST", help="nodes of this Slurm job, as n1,n2 or n[1-4]; default: this machine alone")
    parser.add_argument("--need", type=int, metavar="N", help="how many of them are to train; default: all")
    parser.add_argument("--run", type=Path, default=Path("."), metavar="FOLDER", help="where the run writes; default: the current folder")
    parser.add_argument("--storage", metavar="FOLDER", help="a disk of each node to look at too; may hold $NAME")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep what was found here, as JSON; must be seen by all nodes")
    parser.add_argument("--site", type=Path, metavar="SITE.yaml", help="site file, whose section `preflight` says what is asked for")
    parser.add_argument("--settings", metavar="JSON", help="the section `preflight` itself, in place of a site file")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON for machines")
    output.add_argument(
        "--batch",
        action="store_true",
        help=f"for the batch script: print the nodes to train on, a line each (exit code {TOO_FEW}: the bad ones; {NO_USE}: why); "
        "all else goes to stderr",
    )
    return parser


def _settings(text: str) -> PreflightConfig:
    try:
        return PreflightConfig.model_validate_json(text)
    except ValidationError as error:
        raise UserError(*(f"--settings: {'.'.join(map(str, one['loc'])) or text}: {one['msg']}" for one in error.errors())) from None


def _expand(text: str) -> list[str]:
    if "[" not in text:
        names = [name for name in text.split(",") if name]
    else:
        try:
            done = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            raise UserError(f"--nodes {text}: scontrol cannot read this; write the names with commas between") from None
        names = done.stdout.split()
    if not names or len(set(names)) < len(names):
        raise UserError(f"--nodes {text}: give each node once, with commas between")
    return names


def _command(node: str | None, options: Mapping[str, Any]) -> list[str]:
    """What starts the agent: on a node by srun, or here. Container and more options of srun: as for training."""
    python = os.environ.get("CODEMIX_PYTHON", sys.executable) if node is not None else sys.executable
    agent = [python, "-P", "-m", _AGENT, json.dumps(options)]
    if node is None:
        return agent
    words = {name: shlex.split(os.environ.get(name, "")) for name in ("CODEMIX_SRUN", "CODEMIX_CONTAINER")}
    return [*_SRUN, f"--nodelist={node}", *words["CODEMIX_SRUN"], *words["CODEMIX_CONTAINER"], *agent]


def _environment() -> dict[str, str]:
    """Of the agents: this one's, but one thread a process, and all of it passed on by srun."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "SLURM_EXPORT_ENV": "ALL", "PYTHONUNBUFFERED": "1"}


def _leave_token(out: Path | None) -> tuple[str, str] | None:
    """A file that every node must see, and what is in it: a node that lacks a mount would train into a folder of its own."""
    if out is None:
        return None
    path, text = out.absolute() / f".seen-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError:
        return None  # the nodes' own look at the run's folder says why
    return str(path), text


def _notes(reports: Sequence[Report], config: PreflightConfig) -> list[str]:
    """Worth a line, and nobody's fault: the clock of the file system."""
    ahead = [one.checks["disk run"]["clock_ahead_seconds"] for one in reports if one.good and "disk run" in one.checks]
    usual = sorted(ahead)[len(ahead) // 2] if ahead else 0.0
    if abs(usual) <= config.clock_skew_seconds:
        return []
    return [f"note: files of the run are dated {abs(usual):.0f} s {'behind' if usual > 0 else 'ahead of'} the nodes' clocks"]


def _keep(out: Path | None, reports: Sequence[Report], verdict: Verdict, lines: Sequence[str], spent: float) -> None:
    if out is None:
        return
    try:
        for one in reports:
            write_json(out / f"{one.node}.json", one.to_json())
        found = {"chosen": verdict.chosen, "spare": verdict.spare, "bad": dict(verdict.bad), "stop": verdict.stop}
        write_json(out / VERDICT_NAME, {**found, "lines": lines, "seconds": round(spent, 2), "time": time.time()})
        write_text(out / "exclude", ",".join(node for node, _ in verdict.bad) + "\n")
    except OSError as error:
        say(f"warning: {out}: what the preflight found cannot be kept ({error.strerror})")


def _tell(batch: bool, as_json: bool, reports: Sequence[Report], verdict: Verdict, lines: Sequence[str], spent: float) -> None:
    if as_json:
        print(json.dumps({"goes_on": verdict.goes_on, "lines": lines, "nodes": [one.to_json() for one in reports]}, indent=1))
        return
    if batch:
        for line in lines:
            say(f"preflight: {line}")
        say(f"preflight: took {spent:.1f} s")
        print(*([verdict.stop] if verdict.stop else verdict.chosen or [node for node, _ in verdict.bad]), sep="\n")
        return
    console = Console()
    table = Table("node", "devices", "matrix product", "all-reduce", "free in the run's folder", "clock", "good")
    for one in reports:
        table.add_row(*_row(one))
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    console.print(f"took {spent:.1f} s", highlight=False)


def _row(report: Report) -> list[str]:
    torch, products = report.parts("torch"), report.parts("matmul")
    device = torch[0].get("device", "CPU") if torch else "?"
    best = max((gib for gib in report.pairs.values()), default=None)
    disk = report.checks.get("disk run")
    return [
        report.node,
        f"{report.workers} × {device}",
        f"{min(one['tflops'] for one in products):.3g} TFLOP/s" if products else "—",
        f"{best:.2f} GiB/s" if best is not None else "—",
        f"{disk['free_gib']:.0f} GiB" if disk else "—",
        f"{report.clock_offset:+.3f} s" if report.clock_offset is not None else "—",
        "yes" if report.good else "no",
    ]
