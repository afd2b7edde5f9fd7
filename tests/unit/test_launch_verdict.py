"""Who is to blame: root causes, consequences, exit codes, and who holds up the others in a hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_codemix import worker
from megatron_codemix.config import TimeoutConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.train import hang, pulse, watchdog
from megatron_codemix.train.hang import HangWatch
from megatron_codemix.train.pulse import ENDED, PulseFile
from megatron_codemix.train.stacks import Place, main_thread, suspect
from megatron_codemix.train.verdict import ErrorRecord, Outcome, judge
from megatron_codemix.train.watchdog import Watchdog


def record(error: BaseException, when: float) -> ErrorRecord:
    extra = worker.describe(error, when)["message"]
    info = extra["extraInfo"]
    return ErrorRecord(extra["message"], info["py_callstack"], when, info["kind"], tuple(info["lines"]))


def ended(rank: int, exit_code: int, error: BaseException | None = None, when: float = 0.0, killed: bool = False) -> Outcome:
    return Outcome(rank, 100 + rank, exit_code, when, killed, record(error, when) if error else None)


LOST = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:57123")


def test_all_well() -> None:
    assert judge([ended(0, 0), ended(1, 0)]).exit_code == 0
    assert judge([ended(0, 75), ended(1, 75)]).exit_code == 75


@pytest.mark.parametrize(
    "lost",
    [
        LOST,
        RuntimeError("Connection reset by peer"),
        RuntimeError("NCCL error: remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: ..."),
        JobError("rank 0: the meeting point 127.0.0.1:1234 was lost (Broken pipe)"),
    ],
)
def test_who_lost_a_peer_is_not_the_cause_although_it_fell_first(lost: Exception) -> None:
    verdict = judge([ended(0, 1, lost, when=1.0), ended(1, 1, ValueError("cause"), when=2.0), ended(2, -9, when=3.0, killed=True)])
    assert verdict.exit_code == 1
    assert verdict.lines[0].splitlines()[-1] == "ValueError: cause"
    assert verdict.lines[1:] == ("ranks 0, 2 ended because of it",)


def test_who_failed_and_was_slow_to_leave_is_the_cause() -> None:
    """It had said so; its peers lost it, ended before it, and the launcher killed what was left."""
    verdict = judge([ended(0, 1, LOST, when=1.0), ended(1, -9, ValueError("cause"), when=2.0, killed=True), ended(2, -9, killed=True)])
    assert (verdict.exit_code, verdict.lines[0].splitlines()[-1]) == (1, "ValueError: cause")
    assert verdict.lines[1:] == ("ranks 0, 2 ended because of it",)
    verdict = judge([ended(0, 1, LOST, when=1.0), ended(1, -9, UserError("a: wrong"), when=2.0, killed=True)])
    assert (verdict.exit_code, verdict.lines) == (2, ("a: wrong",))
    # a broken network: nobody but losers
    verdict = judge([ended(0, -9, LOST, when=2.0, killed=True), ended(1, -9, killed=True)])
    assert verdict.exit_code == 1
    assert "Connection closed by peer" in verdict.lines[0]


def test_the_first_of_several_failures_is_the_cause() -> None:
    verdict = judge([ended(0, 1, ValueError("later"), 2.0), ended(1, 1, KeyError("first"), 1.0), ended(2, 1, KeyError("first"), 3.0)])
    assert "KeyError: 'first'" in verdict.lines[0]
    assert verdict.lines[1:] == ("rank 2 failed in the same way", "rank 0 (process 100) failed too: ValueError: later")


def test_a_signal_is_the_cause_of_what_its_peers_met() -> None:
    verdict = judge([ended(0, 1, LOST, 1.0), ended(1, -9, when=5.0)])
    assert verdict.lines == ("rank 1 of 2 (process 101) was killed by signal SIGKILL (out of memory?)", "rank 0 ended because of it")
    assert "SIGSEGV" in judge([ended(0, -11)]).lines[0]


def test_mistakes_of_the_input_are_said_once_with_exit_code_2() -> None:
    mistakes = [ended(rank, 2, UserError("a: wrong", "b: wrong"), when=float(rank)) for rank in (1, 0)]
    assert judge(mistakes) == judge([*mistakes, ended(2, 1, LOST, 0.5)])
    assert judge(mistakes).exit_code == 2
    assert judge(mistakes).lines == ("a: wrong", "b: wrong")


def test_a_signal_that_was_passed_on_before_training_began() -> None:
    assert judge([ended(0, -15), ended(1, 1, LOST)], frozenset({15})).exit_code == 75
    assert judge([ended(0, -15)]).exit_code == 1
    assert judge([ended(0, -2)], frozenset({2})).lines == ("interrupted",)


def test_the_error_file_is_what_torch_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = tmp_path / "error.json"
    monkeypatch.setenv(worker.ERROR_FILE, str(path))
    monkeypatch.setattr(worker, "_failed_at", None)
    worker.record(ValueError("early"))
    first = json.loads(path.read_text())["message"]["extraInfo"]["time"]
    worker.record(ValueError("early"))
    assert json.loads(path.read_text())["message"]["extraInfo"]["time"] == first
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(path))
    assert failure.message["message"] == "ValueError: early"
    assert failure.timestamp == int(first)
    found = ErrorRecord.read(path)
    assert found is not None
    assert (found.kind, found.when) == ("exception", first)
    path.write_text('{"message": {"mess')
    assert ErrorRecord.read(path) is None


DUMP = """Thread 0x00007f11 (most recent call first):
  File "/lib/python3.11/threading.py", line 320 in wait

Current thread 0x00007f22 (most recent call first):
  File "{first}", line 2810 in all_reduce
  File "/site/torch/nn/modules/module.py", line 81 in wrapper
  File "/app/train/loop.py", line 21 in train
"""


def test_where_a_rank_stood_is_read_from_its_stacks() -> None:
    waiting = main_thread(DUMP.format(first="/site/torch/distributed/distributed_c10d.py"))
    assert waiting == Place('File "/site/torch/distributed/distributed_c10d.py", line 2810 in all_reduce', True)
    busy = main_thread(DUMP.format(first="/app/spin.py"))
    assert busy == Place('File "/app/spin.py", line 2810 in all_reduce', False)
    assert main_thread("") is None
    assert main_thread("Fatal") is None
    assert suspect({0: waiting, 1: busy, 2: waiting}, {0: 5.0, 1: 5.0, 2: 5.0}) == 1
    assert suspect({0: waiting, 1: waiting}, {0: 5.0, 1: 5.1}) is None
    assert suspect({0: waiting, 1: waiting}, {0: 5.0, 1: 9.0}) == 1
    assert suspect({0: busy, 1: busy}, {0: 5.0, 1: 5.0}) is None
    assert suspect({0: busy}, {0: 5.0}) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """time.monotonic() of launcher and ranks, moved by hand."""
    clock = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr(hang, "time", fake)
    monkeypatch.setattr(pulse, "time", fake)
    return clock


def test_a_hang_is_told_from_start_and_end(tmp_path: Path, clock: SimpleNamespace) -> None:
    pulses = PulseFile(tmp_path / "pulse", 2, create=True)
    watch = HangWatch(pulses, TimeoutConfig(hang_seconds=4, join_seconds=6))
    pulses.write(0, 3, 1, "step")
    found: list[tuple[int, list[int]]] = []
    for second in range(1, 13):
        clock.now += 1
        if second == 8:
            pulses.write(0, 4, 1, ENDED)
        suspects = watch.check([0, 1])
        if suspects is not None:
            found.append((second, [rank for rank, last in suspects.pulses.items() if last is None]))
    # Silent for 4 s from the first beat, seen twice, until rank 0 leaves in good order; rank 1 has 4 + 6 s to come, seen twice.
    assert found == [(6, [1]), (7, [1]), (12, [1])]
    pulses.close()


def test_a_launcher_that_slept_blames_nobody(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Stopped and continued as a whole (a suspended job), ranks have been as silent as the launcher."""
    pulses = PulseFile(tmp_path / "pulse", 1, create=True)
    watch = HangWatch(pulses, TimeoutConfig(hang_seconds=4))
    pulses.write(0, 3, 1, "step")
    clock.now += 3600
    looks = []
    for _ in range(6):
        looks.append(watch.check([0]) is not None)
        clock.now += 1
    assert looks == [False] * 6
    assert watch.check([0]) is not None
    pulses.close()


_ALONE = """
import ctypes, sys
from pathlib import Path
from megatron_codemix.train.watchdog import Watchdog
from megatron_codemix.train.workers import Worker
with Watchdog(Path(sys.argv[1]), 0, 2, 0.5) as watchdog:
    watchdog.beat(7, "step")
    if sys.argv[2] == "gil":
        ctypes.PyDLL(None).sleep(60)
    while sys.argv[2] == "python":
        pass
"""


@pytest.mark.parametrize("how", ["gil", "python", "well"])
def test_the_watchdog_without_a_launcher(tmp_path: Path, how: str) -> None:
    """As under torchrun: a timer in C writes the stacks and ends the process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CODEMIX_", "TORCHELASTIC_"))}
    error_file = tmp_path / "error.json"
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "stacks"), how]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**environment, worker.ERROR_FILE: str(error_file), "RANK": "0"}
    )
    if how == "well":
        assert (result.returncode, result.stderr) == (0, "")
        assert not (tmp_path / "stacks").exists()
        return
    assert result.returncode == 1
    place = main_thread((tmp_path / "stacks" / "rank-00000.attempt-2.txt").read_text())
    assert place is not None
    assert '"<string>"' in place.innermost
    if how == "python":
        assert "no progress for " in result.stderr
        assert "rank 0; last: step 7" in result.stderr
        assert "no progress" in ErrorRecord.read(error_file).message


def test_beats_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = []
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *given, **named: arms.append(given))
    begun = time.monotonic()
    with Watchdog(tmp_path / "stacks", 0, 1, 600.0) as dog:
        for step in range(10_000):
            dog.beat(step, "step")
    assert 1 <= len(arms) <= 2 + (time.monotonic() - begun)  # not each starts a timer, one a second does


def test_stacks_can_be_asked_for_and_sweeping_spares_what_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    folder.mkdir()
    (folder / "rank-00001.attempt-0.txt").touch()
    (folder / "rank-00002.attempt-0.txt").write_text("stacks of a hang")
    with Watchdog(folder, 0, 1, 600.0):
        os.kill(os.getpid(), signal.SIGUSR2)
        end = time.monotonic() + 30
        while not (folder / "rank-00000.attempt-1.txt").stat().st_size and time.monotonic() < end:
            time.sleep(0.01)
    assert sorted(path.name for path in folder.iterdir()) == ["rank-00000.attempt-1.txt", "rank-00002.attempt-0.txt"]
    assert "in test_stacks_can_be_asked_for" in (folder / "rank-00000.attempt-1.txt").read_text()
