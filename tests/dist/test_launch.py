"""`codemix train --nproc`: the root cause first, nobody left behind, hangs that end with stacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_WORKER = Path(__file__).with_name("launch_worker.py")


class Launch:
    """A launcher in a process of its own."""

    def __init__(self, folder: Path, nproc: int, scenario: str, out: int = subprocess.PIPE, **options: float) -> None:
        self.folder = folder
        command = [sys.executable, str(_WORKER), "launch", str(nproc), scenario, str(folder)]
        command += [f"{key}={value}" for key, value in options.items()]
        environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, process_group=0)
        self.out = self.err = ""

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)

    def end(self, seconds: float = 150.0) -> int:
        self.out, self.err = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def said(self) -> list[str]:
        """What the launcher itself said."""
        return self.err[self.err.index("codemix train: ") :].splitlines() if "codemix train: " in self.err else []

    def pids(self, number: int) -> list[int]:
        """Process ids of the workers, once so many have announced themselves."""
        end = time.monotonic() + 120
        while len(found := list(self.folder.glob("*.pid"))) < number:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "the workers did not start"
            time.sleep(0.05)
        return [int(path.read_text()) for path in sorted(found)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def left_after(pids: list[int], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_the_rank_that_failed_is_named_first_with_its_own_traceback(tmp_path: Path) -> None:
    with Launch(tmp_path, 3, "raises") as launch:
        assert launch.end() == 1
    said = launch.said()
    assert said[0].startswith("codemix train: rank 1 of 3 (process ")
    assert said[0].endswith(") failed:")
    assert said[1] == "Traceback (most recent call last):"
    assert any(line == "ValueError: this is the cause" for line in said)
    assert said[-1] == "codemix train: ranks 0, 2 ended because of it"
    assert launch.err.count("Traceback") == 1, launch.err


@pytest.mark.parametrize(
    "scenario, code, words",
    [
        ("raises_and_stays", 1, "ValueError: this is the cause"),
        ("raises_and_nobody_notices", 1, "ValueError: this is the cause"),
        ("user_and_stays", 2, "codemix train: sources.code: unreadable here; mend the disk"),
    ],
)
def test_the_cause_is_named_although_it_is_slow_to_leave(tmp_path: Path, scenario: str, code: int, words: str) -> None:
    with Launch(tmp_path, 2, scenario, grace=2) as launch:
        assert launch.end(60) == code
    assert words in launch.said()
    if code == 1:
        assert launch.said()[0].startswith("codemix train: rank 1 of 2 (process ")
        assert launch.said()[-1] == "codemix train: rank 0 ended because of it"


def test_output_that_finds_no_room_ends_nobody(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, Launch(tmp_path, 3, "talks", out=full.fileno()) as launch:
        pids = launch.pids(3)
        assert launch.end(60) == 0
    assert left_after(pids, 1) == []
    assert "Traceback" not in launch.err


def test_a_burst_of_output_comes_whole(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "talks") as launch:
        assert launch.end(60) == 0
    text = [f"{number} " + "x" * 10_000 for number in range(20)]
    assert [line for line in launch.out.splitlines() if line.startswith("[rank 1] ")] == [f"[rank 1] {line}" for line in text]


def test_ctrl_z_stops_the_workers_too(tmp_path: Path) -> None:
    def wait_for(stopped: bool) -> None:
        end = time.monotonic() + 30
        while any((state(pid) == "T") != stopped for pid in (launch.process.pid, *pids)):
            assert time.monotonic() < end
            time.sleep(0.02)

    with Launch(tmp_path, 2, "waits") as launch:
        pids = launch.pids(2)
        for _ in range(2):
            launch.process.send_signal(signal.SIGTSTP)
            wait_for(stopped=True)
            launch.process.send_signal(signal.SIGCONT)
            wait_for(stopped=False)
        launch.process.terminate()
        assert launch.end(30) == 75


def test_a_rank_killed_by_a_signal_is_named(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "killed") as launch:
        pids = launch.pids(2)
        assert launch.end() == 1
    said = launch.said()
    assert said == [
        f"codemix train: rank 1 of 2 (process {pids[1]}) was killed by signal SIGKILL (out of memory?)",
        "codemix train: rank 0 ended because of it",
    ]
    assert left_after(pids, 5) == []


def test_a_mistake_that_all_ranks_find_is_said_once(tmp_path: Path) -> None:
    with Launch(tmp_path, 4, "user") as launch:
        assert launch.end() == 2
    assert launch.err == "codemix train: sources.code: no such folder; mend the path\n"


def test_a_known_reason_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "job") as launch:
        assert launch.end() == 1
    assert launch.err == "codemix train: step 5: loss nan: training has diverged\n"


def test_a_rank_that_ends_without_a_word_is_named_too(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "silent") as launch:
        assert launch.end() == 1
    assert "rank 1 of 2 (process " in launch.said()[0]
    assert "ended with exit code 3 and did not say why" in launch.said()[0]


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    with Launch(tmp_path, 3, "missing", join=6) as launch:
        assert launch.end() == 1
    [line] = launch.said()
    assert "waited 6 s for 3 processes; rank 2 has not come (here: 2 on " in line
    assert "Traceback" not in launch.err


def test_a_missing_rank_zero_is_named(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "hostless", join=6) as launch:
        assert launch.end() == 1
    [line] = launch.said()
    assert "rank 1 waited 6 s" in line
    assert "rank 0 has not come" in line


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_killed_launcher_leaves_no_orphan(tmp_path: Path) -> None:
    with Launch(tmp_path, 3, "deaf") as launch:
        pids = launch.pids(3)
        launch.process.kill()
        assert left_after(pids, 10) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_is_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    with Launch(tmp_path, 2, "stops") as launch:
        pids = launch.pids(2)
        launch.process.send_signal(number)
        assert launch.end(30) == 75
    assert launch.err == f"{number.name}: finishing this step, then saving and leaving\n"
    assert left_after(pids, 1) == []


def test_a_request_to_stop_before_training_began(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "waits") as launch:
        launch.pids(2)
        launch.process.terminate()
        assert launch.end(30) == 75
    assert launch.said() == ["codemix train: stopped before training began; the same command starts it"]


def test_the_second_ctrl_c_ends_workers_that_do_not_hear(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "deaf", grace=1) as launch:
        pids = launch.pids(2)
        launch.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        launch.process.send_signal(signal.SIGINT)  # an echo of the first
        time.sleep(2.5)
        assert launch.process.poll() is None
        launch.process.send_signal(signal.SIGINT)
        assert launch.end(30) == 1
    assert launch.said() == ["codemix train: interrupted"]
    assert left_after(pids, 1) == []


def test_output_of_rank_zero_is_untouched_and_the_others_is_marked(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "waits") as launch:
        launch.pids(2)
        launch.process.terminate()
        launch.end(30)
    assert sorted(launch.out.splitlines()) == ["[rank 1] rank 1 waits", "rank 0 waits"]
    assert launch.err.splitlines()[:2] in (["to stderr", "[rank 1] to stderr"], ["[rank 1] to stderr", "to stderr"])


def test_a_worker_that_hangs_in_its_exit_is_ended(tmp_path: Path) -> None:
    with Launch(tmp_path, 2, "lingers", exit=1) as launch:
        assert launch.end() == 0
    assert launch.said() == ["codemix train: rank 1 had not ended 1 s after the first, and had to be killed (all work was done)"]
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(
    "scenario, where",
    [
        ("hangs", 'stood at File "{worker}", line '),
        ("hangs_with_gil", 'stood at File "{worker}", line '),
        ("hangs_stopped", "is stopped (SIGSTOP)"),
    ],
)
def test_a_hang_ends_with_the_stacks_of_all_and_names_who_holds_up(tmp_path: Path, scenario: str, where: str) -> None:
    with Launch(tmp_path, 2, scenario, hang=2) as launch:
        pids = launch.pids(2)
        begun = time.monotonic()
        assert launch.end() == 1
    assert time.monotonic() - begun < 20
    said = launch.said()
    assert said[0] == "codemix train: no progress for 2 s (timeouts.hang_seconds); all ranks were ended"
    assert said[1].startswith(f"codemix train: rank 1 (process {pids[1]}) seems to hold up the others: it ")
    assert where.format(worker=_WORKER) in said[1]
    assert "rank 0: step 17, " in said[2] and "rank 1: step 17, " in said[2]
    assert said[3] == f"codemix train: stacks of all ranks: {tmp_path / 'stacks'}"
    names = {path.name: path.read_text() for path in (tmp_path / "stacks").iterdir()}
    assert set(names) == {"rank-00000.attempt-3.txt", "rank-00001.attempt-3.txt"}
    assert "distributed_c10d.py" in names["rank-00000.attempt-3.txt"]
    if scenario != "hangs_stopped":
        assert "launch_worker.py" in names["rank-00001.attempt-3.txt"]
    assert left_after(pids, 5) == []


def test_torchrun_names_the_root_cause_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(_WORKER), "train", "raises", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 1
    root = result.stderr[result.stderr.index("Root Cause (first observed failure):") :]
    assert "rank      : 1 (local_rank: 1)" in root
    assert "ValueError: this is the cause" in root
    assert "codemix train: rank 1 of 2 (process " in result.stderr


def test_several_launches_at_once_do_not_meet_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(2)]
    for folder in folders:
        folder.mkdir()
    with Launch(folders[0], 2, "killed") as first, Launch(folders[1], 2, "raises") as second:
        assert first.end() == second.end() == 1
    assert "SIGKILL" in first.said()[0]
    assert "ValueError: this is the cause" in second.said()
