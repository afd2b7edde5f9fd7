"""Commands that must not outlive the one that started them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

STOP_SECONDS = 15.0
"""What a command gets between being asked to end and being killed: a trainer finishes its step and saves."""


@contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that one way out cleans up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(processes: Sequence[subprocess.Popen], seconds: float = STOP_SECONDS) -> None:
    """Ask all to end, then wait for each; kill what does not end in time. Further signals do not cut this short."""
    with _shielded():
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _shielded() -> Iterator[None]:
    # Ctrl-C reaches the whole group, and then the one above asks again: that must not interrupt the cleaning up.
    try:
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def run_and_wait(command: list[str], **options) -> int:
    """Run a command to its end; returns its exit code. Interrupted, it is stopped first, with time to stop its own."""
    with terminate_like_interrupt():
        process = subprocess.Popen(command, **options)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                stop([process], 2 * STOP_SECONDS)
