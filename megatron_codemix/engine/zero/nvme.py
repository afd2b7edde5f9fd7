"""State on nvme: what it needs is there, or is named in one line before training begins; a rank's folder, and its end.

Rajbhandari et al. 2021, arXiv 2104.07857 (ZeRO-Infinity). DeepSpeed reads and writes past the system's cache (O_DIRECT) with libaio, from
page-locked buffers, by an operator that it compiles at the first use. What fails there ends the process without words that a user could
act on, so everything that can be asked before is.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL, addressof, c_char, c_size_t, c_void_p, get_errno
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from megatron_codemix.config import RunConfig
from megatron_codemix.config.deepspeed import swap_groups
from megatron_codemix.engine.zero.settings import SWAP_BUFFERS, WEIGHT_BUFFERS
from megatron_codemix.errors import UserError
from megatron_codemix.files import remove_folder
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import say

_FP32, _BLOCK = 4, 4096
_COPIED = 3
"""Tensors of a checkpoint: weight and two moments."""
_LOCK = "lock"


@dataclass(frozen=True)
class SwapNeeds:
    """Of one rank, in bytes: at least what DeepSpeed takes, which leaves groups and weights below 1 MiB in host memory."""

    files: int
    locked: int
    """Page-locked host memory."""

    @classmethod
    def of(cls, config: RunConfig, groups: Sequence[Sequence[int]], ranks: int) -> SwapNeeds:
        """groups: elements of this rank's whole parameters, as AdamW groups them; ranks: that split each of them."""
        wanted, element = config.deepspeed, 2 if config.precision == "bf16" else _FP32
        parts = [[-(-size // ranks) for size in group] for group in groups]
        together = [size for group in parts for size in swap_groups(group, wanted.swap_elements)]
        files = locked = 0
        if wanted.offload_optimizer == "nvme":
            files += (SWAP_BUFFERS + _COPIED) * _FP32 * sum(together)  # a checkpoint's copy lies there too
            locked += SWAP_BUFFERS * _FP32 * max(together)
        if wanted.offload_parameters == "nvme":
            files += element * sum(together)
            # and new weights of a group on their way out, for which DeepSpeed takes the room of whole parameters
            locked += WEIGHT_BUFFERS * element * max(map(max, parts)) + element * ranks * max(together)
        return cls(files, locked)


class SwapFolder:
    """A folder of this rank's own below `deepspeed.nvme_path`: goes with the object, at the latest with the process."""

    def __init__(self, config: RunConfig, groups: Sequence[Sequence[int]], topology: Topology) -> None:
        """groups: as `SwapNeeds.of`. What killed starts of this run have left goes first. Collective.

        Raises UserError on every rank: no compiler, ninja or libaio; a folder that cannot be written to, whose file system has no
        direct input and output, or too little room; too little memory that may be locked.
        """
        base = config.deepspeed.nvme_path
        assert base is not None, "the config was read"
        machine = socket.gethostname()
        machines = topology.gather(machine)
        first_here = machines.index(machine) == topology.rank
        _agree(topology, _operator_problem() if first_here else None)  # it compiles, for the others too
        _agree(topology, None if first_here else _operator_problem())
        prefix = f"codemix-{sha256(str(config.output.absolute()).encode()).hexdigest()[:12]}."
        _agree(topology, _sweep(base, prefix))
        needs = SwapNeeds.of(config, groups, topology.data_and_context.size)
        files = sum(size for size, other in zip(topology.gather(needs.files), machines, strict=True) if other == machine)
        _agree(topology, _room_problem(base, files) or _locking_problem(needs.locked))
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        """Empty but for a file that the process holds locked."""
        held = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        weakref.finalize(self, _remove, self.path, held, os.getpid())


def _remove(path: Path, held: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked off
        with suppress(OSError):  # the next start of the run tries again
            remove_folder(path)
        os.close(held)


def _agree(topology: Topology, problem: str | None) -> None:
    """Raises UserError on every rank where one has a problem."""
    problems = dict.fromkeys(found for found in topology.gather(problem) if found)
    if problems:
        raise UserError(*problems)


def _operator_problem() -> str | None:
    """Have DeepSpeed's operator loaded, compiled where it is not yet; what stands in the way, in one line."""
    where, instead = "deepspeed: state on nvme", "or offload to cpu"
    if not sys.platform.startswith("linux"):
        return f"{where} needs libaio, which is Linux's; offload to cpu"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"{where} needs a C++ compiler, and there is no {compiler}; install one (`apt-get install g++`), {instead}"
    if not cpp_extension.is_ninja_available():
        return f"{where} needs ninja, which is not there; `pip install ninja`, {instead}"
    builder: Any = importlib.import_module("deepspeed.ops.op_builder").AsyncIOBuilder()
    if not builder.is_compatible(verbose=False):
        return f"{where} needs libaio with its headers, which is not there; install it (`apt-get install libaio-dev`), {instead}"
    built = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    if builder.name not in builder._loaded_ops and not any(built.glob("*.so")):
        say("compiling DeepSpeed's operator for state on nvme (once on a machine, a few minutes)")
    try:
        builder.load(verbose=False)
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{where} needs an operator that DeepSpeed could not compile ({reason}); see `ds_report`, {instead}"
    return None


def _sweep(base: Path, prefix: str) -> str | None:
    """Make the folder, and remove what no living process of this run holds; what stands in the way, in one line."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        for left in base.glob(f"{prefix}*"):
            with suppress(BlockingIOError, FileNotFoundError):  # held by an engine of this very process; swept by another rank
                held = os.open(left / _LOCK, os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_folder(left)
                finally:
                    os.close(held)
    except OSError as error:
        return f"deepspeed.nvme_path: {base} cannot be written to ({error.strerror}); mend that, or name another folder"
    return None


def _room_problem(base: Path, needed: int) -> str | None:
    """needed: bytes of all ranks of this machine."""
    try:
        with mmap.mmap(-1, _BLOCK) as block, tempfile.NamedTemporaryFile(prefix="codemix-probe.", dir=base) as probe:
            descriptor = os.open(probe.name, os.O_WRONLY | os.O_DIRECT)
            try:
                os.write(descriptor, block)
            finally:
                os.close(descriptor)
        free = shutil.disk_usage(base).free
    except OSError as error:
        if error.errno == errno.EINVAL:
            return f"deepspeed.nvme_path: the file system of {base} has no direct input and output; name a folder on a local disk"
        return f"deepspeed.nvme_path: {base} cannot be written to ({error.strerror}); mend that, or name another folder"
    if free < needed:
        return (
            f"deepspeed.nvme_path: {base} has {free / 2**30:,.2f} GiB free, and the ranks of a machine need {needed / 2**30:,.2f} GiB "
            "there; make room, or name another folder"
        )
    return None


def _locking_problem(needed: int) -> str | None:
    """Whether so many bytes can be page-locked: by doing so."""
    try:
        with mmap.mmap(-1, max(needed, 1)) as buffer:
            _page_lock(buffer)
    except OSError as error:
        return (
            f"deepspeed.swap_elements: {needed / 2**30:,.2f} GiB of host memory cannot be page-locked ({error.strerror}); "
            "raise `ulimit -l`, or lower it"
        )
    return None


def _page_lock(buffer: mmap.mmap) -> None:
    """All of it, until it is closed. Raises OSError."""
    libc = CDLL(None, use_errno=True)
    start = c_char.from_buffer(buffer)
    refused = libc.mlock(c_void_p(addressof(start)), c_size_t(len(buffer))) != 0
    del start  # while it is there, the buffer cannot be closed
    if refused:
        raise OSError(get_errno(), os.strerror(get_errno()))
