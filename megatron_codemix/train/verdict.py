"""How a job of several workers ended, in words: the root cause first, with its own traceback; who only lost a peer, in one line."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_codemix import worker
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE

_GOOD = (0, STOPPED_EXIT_CODE)


@dataclass(frozen=True)
class ErrorRecord:
    """What a worker wrote into its error file (worker.py), or any program under `torch.distributed.elastic`'s `record`."""

    message: str
    text: str
    """Traceback, or the lines of a known mistake."""
    when: float
    """Seconds since the epoch."""
    kind: str
    """user, job or exception."""
    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> ErrorRecord | None:
        """The content of an error file; None where there is none, or it is torn."""
        try:
            message = json.loads(path.read_bytes())["message"]
            extra = message["extraInfo"]
            when = float(extra.get("time", extra["timestamp"]))
            kind, lines = str(extra.get("kind", "exception")), tuple(map(str, extra.get("lines", ())))
            return cls(str(message["message"]), str(extra["py_callstack"]).rstrip(), when, kind, lines)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def is_peer_loss(self) -> bool:
        """Whether this worker failed because another had."""
        return self.kind != "user" and worker.is_peer_loss(self.message)


@dataclass(frozen=True)
class Outcome:
    """How one worker ended."""

    rank: int
    pid: int
    exit_code: int
    """Negative: minus the signal that killed it."""
    when: float
    """Seconds since the epoch."""
    killed: bool
    """By the launcher."""
    error: ErrorRecord | None

    @property
    def failed(self) -> bool:
        """Whether it ended badly of itself. One that had said what went wrong, and was slow to leave, did so."""
        return self.error is not None if self.killed else self.exit_code not in _GOOD

    @property
    def is_consequence(self) -> bool:
        """Whether it ended because another had."""
        return self.error.is_peer_loss if self.error is not None else self.killed


@dataclass(frozen=True)
class Verdict:
    """What the launcher says and returns."""

    exit_code: int
    lines: tuple[str, ...] = ()


def judge(outcomes: Sequence[Outcome], forwarded: frozenset[int] = frozenset()) -> Verdict:
    """Exit code and words for a job whose workers have all ended. forwarded: signals that were passed on to them."""
    failed = [outcome for outcome in outcomes if outcome.failed]
    if not failed:
        return Verdict(STOPPED_EXIT_CODE if any(outcome.exit_code == STOPPED_EXIT_CODE for outcome in outcomes) else 0)
    if any(-outcome.exit_code in forwarded for outcome in failed):
        # A worker that has come to training handles these signals: this one was still starting.
        if signal.SIGINT in forwarded:
            return Verdict(1, ("interrupted",))
        return Verdict(STOPPED_EXIT_CODE, ("stopped before training began; the same command starts it",))
    root = min(failed, key=lambda outcome: (outcome.is_consequence, outcome.error.when if outcome.error else outcome.when))
    if root.error is not None and root.error.kind == "user":
        problems = [line for outcome in failed if outcome.error and outcome.error.kind == "user" for line in outcome.error.lines]
        return Verdict(2, tuple(dict.fromkeys(problems)))
    if root.error is not None and root.error.kind == "job":
        return Verdict(1, root.error.lines)
    return Verdict(1, (_describe(root, len(outcomes)), *_others(root, outcomes)))


def _describe(root: Outcome, world: int) -> str:
    who = f"rank {root.rank} of {world} (process {root.pid})"
    if root.error is not None:
        text = root.error.text
        return text if text.startswith("rank ") else f"{who} failed:\n{text}"
    return f"{who} {_ending(root.exit_code)}"


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code} and did not say why; its output is above"
    hint = {signal.SIGKILL: " (out of memory?)", signal.SIGBUS: " (full /dev/shm, or a file that shrank?)"}
    return f"was killed by signal {signal_name(-exit_code)}" + hint.get(-exit_code, "")  # type: ignore[call-overload]


def signal_name(number: int) -> str:
    """'SIGKILL' for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _others(root: Outcome, outcomes: Sequence[Outcome]) -> list[str]:
    """A line for the workers that fell with it, and one for each that had a failure of its own."""
    others = [outcome for outcome in outcomes if outcome is not root]
    own = [outcome for outcome in others if outcome.failed and not outcome.is_consequence]
    same = [outcome for outcome in own if _cause(outcome) == _cause(root)]
    lost = [outcome for outcome in others if outcome.is_consequence]
    lines = [f"{ranks(same)} failed in the same way"] if same else []
    lines += [f"rank {outcome.rank} (process {outcome.pid}) failed too: {_cause(outcome)}" for outcome in own if outcome not in same]
    return lines + ([f"{ranks(lost)} ended because of it"] if lost else [])


def _cause(outcome: Outcome) -> str:
    return outcome.error.message.splitlines()[0] if outcome.error and outcome.error.message else _ending(outcome.exit_code)


def ranks(outcomes: Sequence[Outcome]) -> str:
    """'rank 3' or 'ranks 0, 2, 3'."""
    numbers = ", ".join(str(outcome.rank) for outcome in outcomes)
    return f"rank{'s' if len(outcomes) > 1 else ''} {numbers}"
