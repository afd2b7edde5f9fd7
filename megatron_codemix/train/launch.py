"""`codemix train --nproc N`: N workers of one command on this machine, ended together. Imports no torch.

    exit_code = launch([*worker.codemix_command(), "train", "RUN.yaml"], 4, timeouts, Path("RUN/stacks"))

Who starts whom, and who ends whom:

- Workers get torchrun's environment, and die with this process (PR_SET_PDEATHSIG, set before they become the command).
- The port they meet at is bound here and handed to rank 0, so no other program can take it in between.
- Rank 0 writes to this terminal; what the others write comes with `[rank 2] ` before each line.
- SIGTERM, SIGUSR1, SIGHUP and Ctrl-C are passed on; the workers finish their step, save, and end with 75. Ctrl-Z stops all.
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
from megatron_codemix.train.stopping import ECHO_SECONDS, STOPPED_EXIT_CODE, stop_signals
from megatron_codemix.train.verdict import Outcome, Verdict, judge, ranks
from megatron_codemix.train.workers import Relay, Worker

GRACE_SECONDS = 5.0
"""For the others to end of themselves after one has failed, or after a second Ctrl-C."""
EXIT_SECONDS = 60.0
"""For the others to end after one has ended well."""
KILL_SECONDS = 30.0
"""For the kernel to end a process that was killed: one that waits for a dead disk stays for ever."""
_POLL_SECONDS = 0.1
_DEFAULT = TimeoutConfig()


class Job:
    """The workers of one launch, watched until all have ended."""

    def __init__(self, pulses: PulseFile, timeouts: TimeoutConfig, stacks: Path | None) -> None:
        self.workers: list[Worker] = []
        self.pulses, self.stacks = pulses, stacks
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

    def add(self, one: Worker) -> None:
        """One more. It is told what came for all while it was being started."""
        self.workers.append(one)
        for number in tuple(self.forwarded):  # a handler may add one meanwhile
            one.signal(number)

    def suspend(self, number: int, frame: object = None) -> None:
        """Handler of Ctrl-Z: the workers, which are in sessions of their own, stop and continue with this process."""
        for one in self.workers:
            one.signal_all(signal.SIGSTOP)
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here it stands until SIGCONT, or not at all where nobody could continue it
        signal.signal(signal.SIGTSTP, ours)
        for one in self.workers:
            one.signal_all(signal.SIGCONT)

    def run(self, relay: Relay) -> Verdict:
        """Until all have ended, but for those that even SIGKILL does not end."""
        hung = False
        while running := [one for one in self.workers if not one.poll()]:
            relay.pass_on(_POLL_SECONDS)
            self._set_deadlines()
            hang = self._watch.check([one.rank for one in running])
            if hang is not None and not hung:
                hung = True
                _say(kill_with_stacks(running, hang, self.stacks, lambda: relay.pass_on(_POLL_SECONDS)))  # at once: an end may not come
            if self._deadlines and time.monotonic() >= min(self._deadlines.values()):
                for one in running:
                    one.kill()
            if all(one.killed_at is not None and time.monotonic() - one.killed_at > KILL_SECONDS for one in running):
                break
        if running:
            verdict = self._judge(hung)
            return Verdict(1, (*verdict.lines, *(f"{_name(one)} cannot be killed{_reason(one)}" for one in running)))
        return self._judge(hung)

    def _judge(self, hung: bool) -> Verdict:
        if "interrupted" in self._deadlines:
            return Verdict(1, ("interrupted",))
        if hung:
            return Verdict(1)
        verdict = judge(self._outcomes(), frozenset(self.forwarded))
        return verdict if verdict.exit_code not in (0, STOPPED_EXIT_CODE) else self._of_good_end(verdict)

    def _outcomes(self) -> list[Outcome]:
        return [one.outcome() for one in self.workers if one.exit_code is not None]

    def _set_deadlines(self) -> None:
        outcomes = self._outcomes()
        if any(outcome.failed for outcome in outcomes) or any(one.has_failed for one in self.workers):
            self._deadlines.setdefault("failed", time.monotonic() + GRACE_SECONDS)
        elif outcomes:
            self._deadlines.setdefault("ended", time.monotonic() + EXIT_SECONDS)

    def _of_good_end(self, verdict: Verdict) -> Verdict:
        """Workers that had to be killed although none failed: harmless where they had left training in good order."""
        killed = [one for one in self.workers if one.killed and one.exit_code is not None]
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
        job = Job(pulses, timeouts, stacks)
        with _handling(job):
            try:
                for rank in range(nproc):
                    job.add(Worker(rank, command, shared, folder, store))
                store.close()
                relay = Relay(job.workers)
                verdict = job.run(relay)
                relay.close()
            finally:
                for one in job.workers:
                    one.kill()
        pulses.close()
    _say(verdict.lines)
    return verdict.exit_code


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        say(f"codemix train: {line}")


def _name(one: Worker) -> str:
    return f"rank {one.rank} (process {one.process.pid})"


def _reason(one: Worker) -> str:
    return f" (state {one.state}: it waits for a disk or a device)" if one.state == "D" else ""


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
    before = {number: signal.signal(number, job.forward) for number in stop_signals()}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, job.suspend)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
