"""`codemix train --nproc N`: N workers of one command on this machine, ended together. Imports no torch.

    exit_code = launch([sys.executable, "-m", "megatron_codemix.cli", "train", "RUN.yaml"], 4, timeouts, Path("RUN/stacks"))

Who starts whom, and who ends whom:

- Workers get torchrun's environment, and die with this process (PR_SET_PDEATHSIG, set before they become the command).
- The port they meet at is bound here and handed to rank 0, so no other program can take it in between.
- Rank 0 writes to this terminal; what the others write comes with `[rank 2] ` before each line.
- SIGTERM, SIGUSR1 and Ctrl-C are passed on; the workers finish their step, save, and end with 75.
- When one fails, the others get GRACE_SECONDS, then SIGKILL; verdict.py finds the root cause.
- When one makes no progress for `hang_seconds`, all write their stacks and are killed (hang.py).
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_codemix import worker
from megatron_codemix.config import TimeoutConfig
from megatron_codemix.progress import say
from megatron_codemix.train.hang import HangWatch, kill_with_stacks
from megatron_codemix.train.pulse import ENDED, PULSE_FILE, PulseFile
from megatron_codemix.train.stopping import ECHO_SECONDS, STOPPED_EXIT_CODE
from megatron_codemix.train.verdict import Verdict, judge, ranks
from megatron_codemix.train.workers import Relay, Worker

GRACE_SECONDS = 5.0
"""For the others to end of themselves after one has failed, or after a second Ctrl-C."""
EXIT_SECONDS = 60.0
"""For the others to end after one has ended well."""
_POLL_SECONDS = 0.1
_DEFAULT = TimeoutConfig()
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Job:
    """The workers of one launch, watched until all have ended."""

    def __init__(self, workers: Sequence[Worker], pulses: PulseFile, timeouts: TimeoutConfig, stacks: Path | None) -> None:
        self.workers, self.pulses, self.stacks = workers, pulses, stacks
        self.forwarded: set[int] = set()
        self._interrupts: list[float] = []
        self._watch = HangWatch(pulses, timeouts)
        self._deadlines: dict[str, float] = {}

    def forward(self, number: int, frame: object = None) -> None:
        """Handler: pass a signal on. A second Ctrl-C also sets a time to the workers, a third one kills them."""
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupts and now - self._interrupts[-1] < ECHO_SECONDS:
                return
            self._interrupts.append(now)
            if len(self._interrupts) > 1:
                self._deadlines["interrupted"] = now + (GRACE_SECONDS if len(self._interrupts) == 2 else 0.0)
        self.forwarded.add(number)
        for one in self.workers:
            one.signal(number)

    def run(self, relay: Relay) -> Verdict:
        """Until all have ended."""
        hung: Verdict | None = None
        while running := [one for one in self.workers if not one.poll()]:
            relay.pass_on(_POLL_SECONDS)
            self._set_deadlines()
            hang = self._watch.check([one.rank for one in running])
            if hang is not None and hung is None:
                lines = kill_with_stacks(running, hang, self.stacks, lambda: relay.pass_on(_POLL_SECONDS))
                hung = Verdict(1, tuple(lines))
            if self._deadlines and time.monotonic() >= min(self._deadlines.values()):
                for one in running:
                    one.kill()
        if "interrupted" in self._deadlines:
            return Verdict(1, ("interrupted",))
        verdict = hung or judge([one.outcome() for one in self.workers], frozenset(self.forwarded))
        return verdict if verdict.exit_code not in (0, STOPPED_EXIT_CODE) else self._of_good_end(verdict)

    def _set_deadlines(self) -> None:
        outcomes = [one.outcome() for one in self.workers if one.exit_code is not None]
        if any(outcome.failed for outcome in outcomes):
            self._deadlines.setdefault("failed", time.monotonic() + GRACE_SECONDS)
        elif outcomes:
            self._deadlines.setdefault("ended", time.monotonic() + EXIT_SECONDS)

    def _of_good_end(self, verdict: Verdict) -> Verdict:
        """Workers that had to be killed although none failed: harmless where they had left training in good order."""
        killed = [one for one in self.workers if one.killed]
        if not killed:
            return verdict
        pulses = [self.pulses.read(one.rank) for one in killed]
        left = all(pulse is not None and pulse.what == ENDED for pulse in pulses)
        names = ranks([one.outcome() for one in killed])
        line = f"{names} had not ended {EXIT_SECONDS:.0f} s after the first, and had to be killed" + (
            " (all work was done)" if left else ""
        )
        return Verdict(verdict.exit_code if left else 1, (line, *verdict.lines))


def launch(
    command: Sequence[str],
    nproc: int,
    timeouts: TimeoutConfig = _DEFAULT,
    stacks: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Run `nproc` workers of `command` to their end; returns the exit code and prints the root cause of a failure to stderr.

    stacks: the folder in which the workers' watchdogs write (train/watchdog.py). Exit code: 0; 75: stopped on request; 2: the
    workers' input is wrong; 1: anything else. Call it from the main thread: it handles signals.
    """
    with tempfile.TemporaryDirectory(prefix="codemix-launch-") as name, _bound_socket() as store:
        folder = Path(name)
        pulses = PulseFile(folder / "pulse", nproc, create=True)
        shared = _environment(environment, nproc, folder, store)
        workers: list[Worker] = []
        job = Job(workers, pulses, timeouts, stacks)
        with _handling(job):
            try:
                for rank in range(nproc):
                    workers.append(Worker(rank, command, shared, folder, store))
                store.close()
                relay = Relay(workers)
                verdict = job.run(relay)
                relay.close()
            finally:
                for one in workers:
                    one.kill()
        pulses.close()
    for line in verdict.lines:
        say(f"codemix train: {line}")
    return verdict.exit_code


def _bound_socket() -> socket.socket:
    """Where the workers meet: a free port of this machine alone, taken from now on.

    Rank 0 listens on it. Until then the others are refused and try again: torch's store has no time limit for a server that
    accepts and says nothing.
    """
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def _environment(given: Mapping[str, str], nproc: int, folder: Path, store: socket.socket) -> dict[str, str]:
    """What all workers are told; what the user has set already stays."""
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # they are all here: no host name needs to resolve, and no port is open to others
    ours = {
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.getsockname()[1]),
        worker.STORE_DESCRIPTOR: str(store.fileno()),
        worker.LAUNCHER: str(os.getpid()),
        PULSE_FILE: str(folder / "pulse"),
    }
    return {**defaults, **{name: value for name, value in given.items() if not name.startswith("TORCHELASTIC_")}, **ours}


@contextmanager
def _handling(job: Job) -> Iterator[None]:
    before = {number: signal.signal(number, job.forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
