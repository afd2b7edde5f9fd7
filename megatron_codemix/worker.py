"""What a process owes the launcher that started it among others: to die with it, and to leave word of what went wrong.

`codemix train --nproc` (train/launch.py) and torchrun both name an error file in TORCHELASTIC_ERROR_FILE and read the JSON that
`torch.distributed.elastic` defines, so that either can name the root cause. Ground floor: imports nothing of the project but
`errors`, and no torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_codemix.errors import JobError, PassingError, UserError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
REFUSED_FILE = "CODEMIX_REFUSED_FILE"
"""Environment variable: where wrong input is to be noted, in lines, for a scheduler that would start the same again."""
LAUNCHER = "CODEMIX_LAUNCHER"
"""Process id of `codemix train --nproc`, set in its workers."""
STORE_DESCRIPTOR = "CODEMIX_STORE_DESCRIPTOR"
"""Number of the open descriptor on which rank 0 serves the meeting point (parallel/rendezvous.py)."""
_CODEMIX = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from megatron_codemix.cli import main; sys.exit(main())"
)
_TASKS = {"SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK", "PMI_SIZE": "PMI_RANK"}
"""Variable with the number of tasks of a scheduler's step → that with a task's own number."""
_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
_failed_at: float | None = None
# What torch.distributed raises in those whose peer is gone. The loser must not be taken for the cause: its error may come first.
_PEER_LOSS = re.compile(
    r"Connection (closed by peer|reset by peer|refused)|Broken pipe|Socket (Timeout|closed)|failed to recv, got 0 bytes|"
    r"Timed out waiting \d+ms for (recv|send)|Application timeout caused pair closure|gloo.*(Timed out|connectFullMesh failed)|"
    r"ncclRemoteError|ncclSystemError|NCCL communicator (was|has been) aborted|remote process (exited|has terminated)|"
    r"DistNetworkError|meeting point .* was lost",
    re.IGNORECASE,
)


def codemix_command() -> list[str]:
    """The beginning of a command line that runs `codemix`: this very code, wherever it was found, and no module of the working
    directory, which `python -m` would look into first."""
    return [sys.executable, "-P", "-c", _CODEMIX, str(Path(__file__).parents[1])]


def refuse_uncounted(environment: Mapping[str, str]) -> None:
    """Raises UserError where a scheduler started several tasks that RANK does not count: each would train the run alone."""
    if "RANK" in environment:
        return
    for name, rank in _TASKS.items():
        if environment.get(name, "1") not in ("", "0", "1"):
            raise UserError(
                f"environment: {environment[name]} tasks were started ({name}), but RANK is not set; start one task a machine with "
                f"torchrun or --nproc, or set RANK=${rank}, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each"
            )


def is_worker() -> bool:
    """Whether this process is one of several: torchrun, or our own launcher, started it."""
    return "RANK" in os.environ


def has_own_launcher() -> bool:
    """Whether `codemix train --nproc` started this process: it prints what went wrong, once for all."""
    return LAUNCHER in os.environ


def speaks_for_all() -> bool:
    """Whether what all processes would say alike is to be said by this one."""
    return os.environ.get("RANK", "0") == "0"


def begin() -> None:
    """Call before anything else in a worker: it ends when its launcher does, and a crash in C shows Python's stack."""
    faulthandler.enable()
    die_with(os.getppid())


def die_with(parent: int) -> None:
    """Have Linux kill this process when `parent`, which started it, is gone: no worker trains on as an orphan.

    SIGKILL and not SIGTERM: whoever waits for a peer in C++ would not hear a request.
    """
    if _PRCTL is None:
        return
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)


def record(error: BaseException) -> None:
    """Write the error file, if a launcher asked for one. A second call of the same failure completes the traceback, not the time."""
    global _failed_at
    if isinstance(error, UserError) and not isinstance(error, PassingError) and (refused := os.environ.get(REFUSED_FILE)):
        _note_refused(Path(refused), error)
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    _failed_at = _failed_at or time.time()
    try:
        _write(Path(path), describe(error, _failed_at))
    except OSError as failure:
        print(f"warning: {path}: cannot be written ({failure.strerror}); the launcher will not know this error", file=sys.stderr)


def _note_refused(path: Path, error: UserError) -> None:
    # the processes of all nodes may write it at once: each a file of its own first
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        temporary.write_text("\n".join(error.problems) + "\n", "utf-8")
        os.replace(temporary, path)
    except OSError as failure:
        print(f"warning: {path}: cannot be written ({failure.strerror}); this may be started again in vain", file=sys.stderr)


def describe(error: BaseException, when: float) -> dict[str, Any]:
    """The content of an error file, with our own fields beside those of torch.distributed.elastic.

    kind: "user" (wrong input), "job" (a known reason), "exception" (anything else); lines: what to print for the first two.
    """
    if isinstance(error, UserError):
        kind, lines = "user", list(error.problems)
    elif isinstance(error, (JobError, KeyboardInterrupt)):
        kind, lines = "job", [str(error) or "interrupted"]
    else:
        kind, lines = "exception", [str(error)]
    text = traceback_text(error) if kind == "exception" else "\n".join(lines)
    message = f"{type(error).__name__}: {error}"
    # torchrun takes the earliest second for the cause: who lost a peer fell in the same one, so it is dated the next
    second = int(when) + is_peer_loss(message)
    extra = {"py_callstack": text, "timestamp": str(second), "time": when, "kind": kind, "lines": lines}
    return {"message": {"message": message, "extraInfo": extra}}


def is_peer_loss(message: str) -> bool:
    """Whether an error says that another process had failed before."""
    return bool(_PEER_LOSS.search(message))


def traceback_text(error: BaseException) -> str:
    """What Python prints of an uncaught exception, under the rank that it happened to."""
    rank, world = os.environ.get("RANK", "?"), os.environ.get("WORLD_SIZE", "?")
    return f"rank {rank} of {world} (process {os.getpid()}) failed:\n" + "".join(traceback.format_exception(error)).rstrip()


def _write(path: Path, content: dict[str, Any]) -> None:
    # not files.atomic_file: it must work on a full disk as well as can be, and the launcher passes over what it cannot parse
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content), "utf-8")
    os.replace(temporary, path)
