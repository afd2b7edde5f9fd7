"""A run as a job of Slurm: checked, written below its folder, handed to sbatch."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_codemix.config import RunConfig, Url, data_ranks, load_config
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.files import atomic_directory, remove_folder, write_json
from megatron_codemix.slurm.chain import FOLDER
from megatron_codemix.slurm.script import log_pattern, render, resources
from megatron_codemix.slurm.site import SiteConfig, seconds_of
from megatron_codemix.slurm.squeue import has_slurm, queue

FORMAT_VERSION = 1
SCRIPT_NAME = "job.sbatch"
_SBATCH_SECONDS = 60.0
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
_VARIABLES = {"ARRAY_INX": "array", "MEM_PER_NODE": "mem", "NO_REQUEUE": "requeue", "TIMELIMIT": "time"}
"""SBATCH_… → option, where lower case is not enough."""
OF_A_JOB = frozenset(
    "CODEMIX_" + name
    for name in (
        *("CHAIN", "CONTAINER", "MASTER", "MAX_RESTARTS", "NODES", "NODE_STORAGE", "PORT", "PREFLIGHT", "PROCESSES", "PYTHON"),
        *("REFUSED_FILE", "RENDEZVOUS", "SCRIPTS", "SRUN", "STOP_FILE"),
    )
)
"""Environment variables that the batch scripts read or set."""


@dataclass(frozen=True)
class Request:
    """What `codemix submit RUN.yaml` was asked for."""

    run_file: Path
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    """Nodes that train."""
    spare: int = 0
    """Nodes to ask for beyond them, for preflight to choose from."""
    time: str | None = None
    """Time limit of one job; None: the site's."""
    accept_changes: bool = False
    after: str | None = None
    """Ids of jobs that must have succeeded, as sbatch reads them: 12:13."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch, whole."""


@dataclass(frozen=True)
class Job:
    """A batch script and where it belongs; nothing is written yet."""

    kind: str
    """train, prep, evaluate, convert."""
    name: str
    folder: Path
    """In which a folder of this submission is made."""
    script: str
    log: str
    """With Slurm's %j for the job's id."""
    files: dict[str, str] = field(default_factory=dict)
    """Other files that the job reads: name → content, beside the script."""
    facts: dict[str, object] = field(default_factory=dict)
    """Of submitted.json."""


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has taken."""

    job: str
    """Its id."""
    folder: Path
    """Of this submission: script, submitted.json."""
    log: Path


def training_job(request: Request, site: SiteConfig, place: str = "") -> tuple[RunConfig, Job]:
    """A run's job. place: name of the submission's folder, in which the run file is copied; empty: the job reads the original.

    Raises UserError with every mistake that can be found without reading data: in the config, its layout on so many processes,
    folders that are not there.
    """
    if site.signal_seconds >= seconds_of(request.time or site.time):
        raise UserError(f"--time {request.time}: the site's signal_seconds, {site.signal_seconds}, is not before its end; give more")
    staging, variables = _staging(request, site)
    config = load_config(request.run_file, RunConfig, [*request.overrides, *staging])
    if request.after is None:
        _require_inputs(config)
        config = _resolved(config)
    data_ranks(config, request.nodes * site.processes)
    run = config.output.absolute()
    run_file = run / FOLDER / place / "run.yaml" if place else request.run_file.absolute()
    words = [str(run_file), *request.overrides, *(one for one in staging if not one.startswith("data.cache.folder="))]
    logs = (site.logs or run / FOLDER).absolute()
    log = log_pattern(logs, f"{config.name}-%j.log")
    options = {
        "job-name": config.name,
        **resources(site, nodes=request.nodes + request.spare, time=request.time),
        "chdir": str(Path.cwd()),
        "output": log,
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{site.signal_seconds}",
        "comment": f"codemix train {run}",
        **after(request.after),
    }
    script = render(
        "train.sbatch",
        options=options,
        site=site,
        variables={**variables, **_variables(request, site)},
        arguments=[*words, *(["--accept-changes"] if request.accept_changes else [])],
        more=request.sbatch,
    )
    facts = {"run": str(run), "nodes": request.nodes, "spare": request.spare, "processes": site.processes, "overrides": words[1:]}
    files = {"run.yaml": request.run_file.read_text("utf-8")} if place else {}
    return config, Job("train", config.name, run / FOLDER, script, log, files, {**facts, "time": request.time or site.time})


def after(jobs: str | None) -> dict[str, str | int | None]:
    """Options of sbatch for a job that waits for others to succeed, and is cancelled where one of them fails."""
    return {"dependency": f"afterok:{jobs}", "kill-on-invalid-dep": "yes"} if jobs else {}


def require_unqueued(run: Path) -> list[str]:
    """Ids of jobs that train into the run folder and are about to end: a new one must wait for them.

    Raises UserError where one trains into it, or waits to.
    """
    try:
        jobs = [job for job in (queue() if has_slurm() else []) if job.is_open and job.work == ("train", str(run.absolute()))]
    except JobError:  # sbatch will say what is wrong
        return []
    for job in jobs:
        if job.state != "COMPLETING":
            raise UserError(f"{run}: job {job.id} ({job.state.lower()}) trains into it; wait for it, or cancel it: scancel {job.id}")
    return [job.id for job in jobs]


def submission_name() -> str:
    """Name of a submission's folder: the local time. `submit` refuses a second one of the same second."""
    return time.strftime("submit-%Y%m%d-%H%M%S")


def submit(job: Job, place: str) -> Submitted:
    """Write the script and what it reads into `job.folder/place`, hand it to sbatch, note the job's id.

    Raises UserError where Slurm is not there or refuses, the folder cannot be written to or is there already; nothing of the
    submission is left then.
    """
    folder = job.folder / place
    try:
        _log_of(job, "").parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(folder) as temporary:
            (temporary / SCRIPT_NAME).write_text(job.script, "utf-8")
            for name, content in job.files.items():
                (temporary / name).write_text(content, "utf-8")
    except FileExistsError:
        raise UserError(f"{folder}: another submission of this second is there; submit again") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); make room, or choose another 'output'") from None
    try:
        number = sbatch([str(folder / SCRIPT_NAME)])
    except UserError:  # nothing else: the job may be there, and reads what lies in the folder
        remove_folder(folder)
        raise
    log = _log_of(job, number)
    facts = {"job": number, "kind": job.kind, "name": job.name, "log": str(log), "submitted": time.time(), **job.facts}
    try:
        write_json(folder / "submitted.json", {"format_version": FORMAT_VERSION, **facts})
    except OSError as error:
        raise JobError(f"job {number} was submitted, but {folder} cannot be written to ({error.strerror})") from None
    return Submitted(number, folder, log)


def _log_of(job: Job, number: str) -> Path:
    return Path(re.sub("%%|%j", lambda found: "%" if found[0] == "%%" else number, job.log))


def sbatch(arguments: Sequence[str]) -> str:
    """Run `sbatch --parsable`; returns the job's id.

    Raises UserError, with what Slurm said, where it refuses or is not there, and JobError where it does not answer.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise UserError("sbatch: not on the PATH; run this on a login node of the cluster, or print the script with --dry-run")
    try:
        done = subprocess.run(
            [program, "--parsable", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SBATCH_SECONDS,
            stdin=subprocess.DEVNULL,
            env=_outside(os.environ, Path(arguments[-1]).read_text("utf-8")),
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"sbatch: no answer for {_SBATCH_SECONDS:g} s; look with squeue whether the job is there, else try again") from None
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        said = " ".join(done.stderr.split()).removeprefix("sbatch: ").removeprefix("error: ") or f"exit code {done.returncode}"
        if re.search("timed out|nable to contact", said):  # the request may have come through all the same
            raise JobError(f"sbatch: {said}; look with squeue whether the job is there, else try again")
        raise UserError(f"sbatch: {said}; mend the site file or the options, then submit again")
    return number


def _outside(environment: Mapping[str, str], script: str) -> dict[str, str]:
    """The environment without what belongs to the job in which this command may run: sbatch hands all of it on. And without the
    SBATCH_ variables of options that the script gives: sbatch would take theirs."""
    given = set(re.findall('^#SBATCH "?--([a-z-]+)', script, re.MULTILINE))
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not (name.startswith(("SLURM_", "SRUN_")) or name in OF_A_JOB or _option_of(name) in given)
    }


def _option_of(variable: str) -> str:
    """The option of sbatch that a variable of the environment stands for; empty: none."""
    name = variable.removeprefix("SBATCH_")
    return "" if name == variable else _VARIABLES.get(name, name.lower().replace("_", "-"))


def following(submitted: Submitted, run: Path) -> list[str]:
    """How to follow and stop a job, in lines."""
    return [
        f"log      tail -F {shlex.quote(str(submitted.log))}",
        f"state    codemix jobs {shlex.quote(str(run))}",
        f"restart  scancel --batch --signal=USR1 {submitted.job}   (saves, then starts again)",
        f"cancel   scancel {submitted.job}   (the same submission continues from the newest checkpoint)",
    ]


def _resolved(config: RunConfig) -> RunConfig:
    """With the trunk's stages. What reads checkpoints takes half a second to import, and few runs are branches."""
    return importlib.import_module("megatron_codemix.train.branch").resolve_branch(config) if config.branch else config


def _variables(request: Request, site: SiteConfig) -> dict[str, str | int]:
    """What train.sbatch reads."""
    looked_at = {"CODEMIX_PREFLIGHT": site.preflight.as_json(site.gpus_per_node)} if site.preflight.enabled else {}
    variables = {"CODEMIX_NODES": request.nodes, "CODEMIX_PROCESSES": site.processes, "CODEMIX_MAX_RESTARTS": site.max_restarts}
    return {**variables, **looked_at}


def _staging(request: Request, site: SiteConfig) -> tuple[list[str], dict[str, str | int]]:
    """Overrides and variables that bring the shards to the nodes' own disks; nothing where the site has none or the run has its own cache.

    Plain paths become file:// addresses, which are read through the run's cache: fetched ahead, verified, one copy a node, bounded.
    """
    storage = site.node_storage
    if storage is None:
        return [], {}
    config = load_config(request.run_file, RunConfig, request.overrides)
    if config.data.cache is not None:
        return [], {}
    overrides = [f"data.cache.bytes={storage.bytes}", f"data.cache.folder={json.dumps(storage.folder)}"]
    for name, source in config.sources.items():
        if isinstance(source.path, Url):
            continue
        path = str(source.path.absolute())
        if "." in name or "?" in path or "#" in path:
            raise UserError(
                f"sources.{name}: cannot be brought to node_storage (a dot in its name, or ? or # in its path); "
                "write its path as file:///…, or give data.cache in the run file"
            )
        overrides.append(f"sources.{name}.path={json.dumps('file://' + path)}")
    return overrides, {"CODEMIX_NODE_STORAGE": storage.folder}


def _require_inputs(config: RunConfig) -> None:
    """Raises UserError, with a line each, for a tokenizer or splits that are not there. Stores are not asked."""
    problems = [] if config.tokenizer.exists() else [f"tokenizer: {config.tokenizer}: no such folder; check the path"]
    for name, source in config.sources.items():
        if isinstance(source.path, Url) and source.path.scheme != "file":
            continue
        folder = Path(str(source.path).removeprefix("file://"))
        for split in filter(None, (source.train_split, source.validation_split)):
            if not (folder / split / "manifest.json").is_file():
                problems.append(f"sources.{name}.path: {folder / split}: no manifest.json there; check the path, or prepare it first")
    if problems:
        raise UserError(*problems)
