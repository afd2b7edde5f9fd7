"""What is run in the sandbox and what is said of it: programs, checks, limits, results."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    """How a program ended. Whatever is not PASSED is a failure; the others say of which kind."""

    PASSED = "passed"
    FAILED_TEST = "failed a test"
    RAISED = "raised"
    """While the program itself ran, before any test. An exception in a call that a test made is FAILED_TEST."""
    SYNTAX = "syntax error"
    """It does not compile (Python), or its compiler refused it (`run_command`)."""
    TIMEOUT = "timed out"
    MEMORY = "out of memory"
    OUTPUT = "too much output"
    """A reply, or what a command printed, over `Limits.output_bytes`."""
    ENDED_EARLY = "ended early"
    """The process was gone (`os._exit`, `sys.exit`) before all was asked."""
    CRASHED = "crashed"
    """It died of a signal that nobody here sent."""
    VIOLATION = "broke the protocol"
    """It wrote to the channel what the sandbox's own code never writes."""
    UNSUPPORTED = "not expressible"
    """The tests hand over something that is no data, or name no function: the fault of the checks, not of the program."""


class Form(StrEnum):
    """Where tests run: what a verdict is worth."""

    CALLS = "calls"
    """In a process without the program; it only answers calls in data. Not forgeable."""
    INSIDE = "inside"
    """In the program's own process: a program that sets out to can forge it."""
    RUN = "run"
    """There are no tests: the program only has to come to its end, by its own word."""
    EXIT_STATUS = "exit-status"
    """A command's exit status, which the program chooses."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program, with all processes it makes, may use."""

    seconds: float = 3.0
    """CPU time of all its processes together (and of its tests), and as long of doing nothing. Waiting for a processor on a loaded
    machine is not counted; ten times as long by the clock ends it in any case."""
    memory_bytes: int = 512 << 20
    """Address space of a process, and resident memory of all together. Commands (`run_command`): the latter only."""
    processes: int = 16
    """And threads."""
    file_bytes: int = 16 << 20
    """A file, and all of /tmp."""
    files: int = 20_000
    """In /tmp, with folders and links."""
    output_bytes: int = 8 << 20
    """One reply to a call; what a command prints."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What must hold of a program. Nothing of it enters the program's sandbox, but for the arguments of calls (INSIDE: all does)."""

    tests: tuple[str, ...] = ()
    """Statements, run one after the other in one namespace; an exception fails. None at all: form RUN."""
    setup: str = ""
    """Run before the tests (INSIDE: behind the program), such as imports, and helper functions that belong to the problem and not to
    the answer: what it defines is not taken from the program, except for `names`."""
    names: tuple[str, ...] | None = None
    """Functions that the program must define; None: names that tests use and nothing defines. Give them where one is also a builtin's
    name (`sum`) or stands in `setup` (HumanEval: a prompt as setup)."""
    form: Form = Form.CALLS
    """CALLS or INSIDE. `form_of(reference, checks)` finds problems that CALLS cannot express."""
    every: bool = False
    """Go on behind an `assert` that failed, so that `Result.passed` counts all that hold; otherwise the first failure ends it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program. It has the standard library, no input, no network."""

    source: str
    checks: Checks = field(default_factory=Checks)
    seconds: float | None = None
    """In place of `Limits.seconds`, for a problem that is known to need longer."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a program."""

    verdict: Verdict
    detail: str
    """The exception, signal or reason; at most some hundred characters, printable."""
    form: Form
    seconds: float
    """CPU time of the program's processes."""
    passed: int = 0
    """Assertions that held each time that they were made; one in a loop counts once. RUN: 1 or 0."""
    total: int = 0
    """Assertions there are in the text of the tests, and failures outside of any; where none failed, those that were reached."""
    confined: bool = True
    """False: run with `unsafe`, under limits only, with the rights of this process."""

    @property
    def share(self) -> float:
        """Of assertions that held; 0 where nothing was asserted."""
        return self.passed / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What became of a command (`Sandbox.run_command`)."""

    verdict: Verdict
    """PASSED: exit status 0; RAISED: another; SYNTAX: `compile` failed."""
    detail: str
    exit_status: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    """By the clock, compiling included."""
    form: Form = Form.EXIT_STATUS
    confined: bool = True
