"""What a cluster asks of every job: one YAML file, `site.yaml`, for all runs on it. launch_scripts/site.example.yaml shows all of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from megatron_codemix.config import load_config
from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section, whole
from megatron_codemix.slurm.preflight.settings import PreflightConfig

SITE_VARIABLE = "CODEMIX_SITE"
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d(:\d\d)?)?")
_NODE_FOLDER = re.compile(r"/([A-Za-z0-9._/+@=-]|\$[A-Z_][A-Z0-9_]*|\$\{[A-Z_][A-Z0-9_]*\})*")
_MEMORY = re.compile(r"\d+[KMGT]?")


def _one_line(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be one line of printable characters, and not empty")
    return value


def slurm_time(value: Any) -> Any:
    """A time limit as Slurm reads it. Raises ValueError for anything else."""
    if isinstance(value, int):
        # YAML reads 24:00:00 as a number of seconds, and Slurm a number as minutes: never guess which was meant
        raise ValueError("a time is text, since YAML makes a number of it; write it in quotes: '24:00:00'")
    if isinstance(value, str) and not _TIME.fullmatch(value):
        raise ValueError("not a time; write hours:minutes:seconds or days-hours, as in '24:00:00' or '2-12'")
    return value


def seconds_of(time: str) -> int:
    """Seconds of a time limit that `slurm_time` accepts: minutes, minutes:seconds, h:m:s, d-h, d-h:m, d-h:m:s."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (parts + [0, 0])[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (parts + [0])[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _node_folder(value: str) -> str:
    if not _NODE_FOLDER.fullmatch(value):
        raise ValueError(
            "not a folder of a node; write an absolute path of letters, digits and ._+@=-, which may hold $SLURM_JOB_ID or $USER"
        )
    return value


def _memory(value: Any) -> Any:
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, str) and not _MEMORY.fullmatch(value):
        raise ValueError("not an amount of memory; write it as Slurm does: 512G, or 0 for all of a node")
    return value


Line = Annotated[str, AfterValidator(_one_line)]
"""Text in one line: a newline in it could end a line of the script and begin another command."""

Time = Annotated[Line, BeforeValidator(slurm_time)]
"""A time limit in Slurm's own form."""

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class NodeStorage(Section):
    """A disk of each node, on which shards are kept while they are read: the run's cache (docs/reading.md)."""

    folder: Annotated[Line, AfterValidator(_node_folder)]
    """Absolute; $NAME and ${NAME} are looked up on the node: /local/$SLURM_JOB_ID. Jobs may share one without the job's id."""
    bytes: Count
    """Most bytes of shards that lie there at a time. With data.order 'global' all of them must fit."""


class SiteConfig(Section):
    """The cluster. Every field has a default; what is null is not passed to Slurm."""

    partition: Line | None = None
    """Partition, or several with commas between."""
    account: Line | None = None
    """Account that pays."""
    qos: Line | None = None
    """Quality of service."""
    constraint: Line | None = None
    """Features that nodes must have."""
    reservation: Line | None = None
    """Reservation to use."""
    exclude: Line | None = None
    """Nodes never to use, as Slurm writes them: n[3-5],n9."""
    gpus_per_node: CountOrZero = 0
    """GPUs of a node; 0: none is asked for."""
    processes_per_node: Count | None = None
    """Training processes on a node; null: one a GPU, or one."""
    cpus_per_task: Count | None = None
    """Cores for all processes of a node."""
    memory: Annotated[Line, BeforeValidator(_memory)] | None = None
    """Memory of a node: 512G; 0: all of it."""
    time: Time = "24:00:00"
    """Time limit of one job; in quotes. A run goes on in as many as it needs."""
    sbatch: list[Annotated[Line, Field(pattern=r"^--?[A-Za-z]")]] = []
    """More options of sbatch, one an entry: --exclusive, --mail-user=me@example.org."""
    srun: list[Annotated[Line, Field(pattern=r"^--?[A-Za-z]")]] = []
    """More options of the srun that starts the nodes: --container-image=IMG of pyxis, --mpi=none."""
    modules: list[Line] = []
    """Modules to load."""
    setup: list[Line] = []
    """Lines of bash that run before anything else, after the modules."""
    container: list[Line] = []
    """Words put before each python command: [apptainer, exec, --nv, IMAGE.sif]."""
    environment: dict[VariableName, Line] = {}
    """Environment variables of the job."""
    network_interface: Line | None = None
    """Interface (or the beginning of its name) for NCCL and Gloo: ib0. Null: they choose."""
    node_storage: NodeStorage | None = None
    """Where nodes keep shards while they read them; null: they read them where they lie."""
    python: Line | None = None
    """Python of the environment that codemix is installed in; null: the one that runs `codemix submit`."""
    logs: FilePath | None = None
    """Folder for the jobs' logs; null: RUN/slurm."""
    max_restarts: CountOrZero = 3
    """A job that failed starts itself again so often in a row without a newer checkpoint."""
    signal_seconds: Annotated[int, BeforeValidator(whole), Field(ge=10, le=65535)] = 300
    """So long before the time limit training saves and leaves, to go on in the next start."""
    preflight: PreflightConfig = PreflightConfig()
    """The look at every node before training begins."""

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """A warning that comes after the time limit."""
        time, before = (
            raw.get("time", cls.model_fields["time"].default),
            raw.get("signal_seconds", cls.model_fields["signal_seconds"].default),
        )
        if isinstance(time, str) and _TIME.fullmatch(time) and isinstance(before, int) and before >= seconds_of(time):
            return [f"signal_seconds: {before} is not before the end of time {time}; lower it, or raise time"]
        return []

    @property
    def processes(self) -> int:
        """Training processes on a node."""
        return self.processes_per_node or max(self.gpus_per_node, 1)


def find_site(path: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The site file: `path`, else $CODEMIX_SITE, else ~/.config/codemix/site.yaml where there is one; None: there is none."""
    if path is not None:
        return path
    if named := environment.get(SITE_VARIABLE):
        return Path(named)
    base = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME") or "/nonexistent") / ".config")
    usual = Path(base) / "codemix" / "site.yaml"
    return usual if usual.is_file() else None


def load_site(path: Path | None, overrides: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> SiteConfig:
    """Read the site file that `find_site` finds; without one, the defaults.

    overrides: `a.b=c`, as of a run config. Raises UserError with every mistake.
    """
    found = find_site(path, environment)
    return SiteConfig() if found is None else load_config(found, SiteConfig, overrides or [])
