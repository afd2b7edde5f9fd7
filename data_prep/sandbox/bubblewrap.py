"""Running programs of unknown origin: what a sandbox must do, and one made of bubblewrap.

No network, no files but the system's own libraries (read-only), no other processes to be seen, no environment; limits on time, memory,
files and processes; a seccomp filter; as nobody. Where that cannot be had nothing is run.

A program that *sets out* to deceive its own tests can do so, since they run in its process; it cannot reach anything outside. Chance
does not pass: ending the process early, printing or catching everything is not a passed test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data_prep.sandbox.seccomp import seccomp_filter
from megatron_codemix.errors import UserError

_NOBODY = 65534
_START_SECONDS = 30
"""A sandbox that has not answered so long after the program's time is killed from outside."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DRIVER = Path(__file__).with_name("driver.py")


class Verdict(StrEnum):
    """How a program ended."""

    PASSED = "passed"
    SYNTAX = "syntax error"
    RAISED = "raised"
    FAILED = "failed a test"
    TIMED_OUT = "timed out"
    MEMORY = "out of memory"
    ENDED_EARLY = "ended early"
    """By `os._exit` or the like: not known whether it would have passed."""
    CRASHED = "crashed"


class Program(NamedTuple):
    """A Python program, and what must hold after it ran."""

    code: str
    tests: tuple[str, ...] = ()
    """Statements run one after the other in the program's own module; an exception fails. None: the program only has to run to its
    end (or `sys.exit(0)`), as `__main__`."""


class Outcome(NamedTuple):
    """What a sandbox says of a program."""

    verdict: Verdict
    detail: str
    """The exception or signal."""


class Limits(NamedTuple):
    """What a program may use."""

    seconds: float = 10.0
    """Of CPU and by the clock."""
    memory_bytes: int = 512 << 20
    """Of address space, a process."""
    processes: int = 16
    file_bytes: int = 16 << 20
    """A file, and all of /tmp."""


class Sandbox(Protocol):
    """Runs programs; may be used by several threads at once."""

    def run(self, program: Program) -> Outcome:
        """Run one to its end. The outcome depends on the program and the limits alone (but for what is near a limit of time)."""
        ...


class Bubblewrap:
    """The sandbox of bubblewrap (`bwrap`), a process tree of its own a program; about 40 ms each.

    Raises UserError when it cannot be had on this machine: it is tried before anything else is run.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._filter = seccomp_filter()
        if self._filter is None:
            raise _unavailable("no seccomp filter is written for this kind of processor")
        needed = {"bwrap": "bubblewrap", "setpriv": "util-linux"} if os.geteuid() == 0 else {"bwrap": "bubblewrap"}
        self._tools = {name: shutil.which(name, path=_PATH) for name in needed}
        for name, path in self._tools.items():
            if path is None:
                raise _unavailable(f"{name} is not installed; on Debian and Ubuntu: apt-get install {needed[name]}")
        self._driver = _DRIVER.read_text(encoding="utf-8")
        self.python = ""
        """Version of the Python that programs are run with."""
        problem = ""
        for interpreter, prefix in _interpreters():
            self._command = self._bubblewrap(interpreter, prefix)
            problem = self._try() or problem
            if self.python:
                return
        raise _unavailable(problem)

    def _try(self) -> str:
        """Run two programs whose outcome is known; returns what went wrong, or sets `python`."""
        answer, errors = self._answer(Program("pass"), _START_SECONDS)
        if answer is None or answer["verdict"] != Verdict.PASSED:
            return errors.strip().splitlines()[-1] if errors.strip() else "the sandbox does not start"
        if self.run(Program("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)")).verdict != Verdict.RAISED:
            return "the sandbox has a network"
        self.python = answer["python"]
        return ""

    def _bubblewrap(self, interpreter: str, prefix: str) -> list[str]:
        as_nobody = []
        if os.geteuid() == 0:
            as_nobody = [self._tools["setpriv"], "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", "--no-new-privs"]
        binds = ["--ro-bind", "/usr", "/usr"]
        for name in ("lib", "lib32", "lib64", "bin"):
            root = Path("/", name)
            if root.is_symlink():
                binds += ["--symlink", os.readlink(root), str(root)]
            elif root.is_dir():
                binds += ["--ro-bind", str(root), str(root)]
        if not Path(prefix).is_relative_to("/usr"):
            binds += ["--ro-bind", prefix, prefix]
        isolation = ["--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
        environment = ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0"]
        # No /proc: through it processes of one user reach into each other.
        own = ["--dev", "/dev", "--size", str(self._limits.file_bytes), "--tmpfs", "/tmp", "--size", str(1 << 20), "--tmpfs", "/dev/shm"]
        closed = ["--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--cap-drop", "ALL"]
        user = ["--uid", str(_NOBODY), "--gid", str(_NOBODY), "--seccomp", "{seccomp}"]
        python = [interpreter, "-I", "-S", "-c", self._driver]
        return [*as_nobody, str(self._tools["bwrap"]), *isolation, *environment, *binds, *own, *closed, *user, *python]

    def _answer(self, program: Program, patience: float) -> tuple[dict[str, Any] | None, str]:
        """(what the driver said, if anything; what was written on stderr)."""
        limits = self._limits
        request = {"code": program.code, "tests": list(program.tests), "seconds": limits.seconds, "memory": limits.memory_bytes}
        request |= {"processes": limits.processes, "file": limits.file_bytes}
        read, write = os.pipe()
        try:
            assert self._filter is not None
            os.write(write, self._filter)
            os.close(write)
            process = subprocess.Popen(
                [str(read) if part == "{seccomp}" else part for part in self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": _PATH},
                cwd="/",
                pass_fds=(read,),
                start_new_session=True,
            )
        finally:
            os.close(read)
        try:
            out, errors = process.communicate(json.dumps(request).encode(), timeout=limits.seconds + patience)
        except subprocess.TimeoutExpired:
            out, errors = b"", b"no answer in time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        try:
            return json.loads(out), ""
        except (ValueError, RecursionError):
            return None, errors.decode("utf-8", "replace")

    def run(self, program: Program) -> Outcome:
        """Run one program to its end."""
        answer, errors = self._answer(program, _START_SECONDS)
        if answer is not None and (outcome := _outcome(answer)) is not None:
            return outcome
        if errors == "no answer in time":
            return Outcome(Verdict.TIMED_OUT, "")
        return Outcome(Verdict.CRASHED, "it ended the process that watched it")


def _outcome(answer: dict[str, Any]) -> Outcome | None:
    """What the driver said; None where it is nothing that it says: a program can speak in the name of the process that runs it."""
    verdict, detail = answer.get("verdict"), answer.get("detail")
    if not isinstance(verdict, str) or verdict not in set(Verdict) or not isinstance(detail, str):
        return None
    return Outcome(Verdict(verdict), detail.encode("utf-8", "backslashreplace").decode("utf-8"))


def _interpreters() -> list[tuple[str, str]]:
    """(executable, the folder that holds it and its library): this Python without its environment, then the system's."""
    own = os.path.realpath(os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    found = [(own, os.path.realpath(sys.base_prefix)), ("/usr/bin/python3", "/usr")]
    return [(executable, prefix) for executable, prefix in found if os.path.exists(executable)]


def _unavailable(why: str) -> UserError:
    return UserError(
        f"programs of unknown origin are only run in a sandbox of bubblewrap, which cannot be had here ({why}); "
        "mend that, or run this command on a machine where it works"
    )
