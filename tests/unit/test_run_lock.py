"""Who may write into a run folder: locks, heartbeats, attempts, restarts of one Slurm job."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_codemix.checkpoint import Superseded
from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.train import lock
from megatron_codemix.train.lock import RunLock

ELSEWHERE = {"pid": 7, "host": "elsewhere"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.6)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def held_by(folder, holder: dict, seconds_ago: float = 0.0):
    path = folder / "train.lock"
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_each_start_is_an_attempt_and_leaves_an_empty_file(tmp_path):
    for number in range(3):
        with RunLock(tmp_path) as mine:
            assert mine.attempt.number == number
            assert mine.is_held()
            assert json.loads((tmp_path / "train.lock").read_text()) == {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "boot": lock._boot(),
            }
        assert (tmp_path / "train.lock").read_bytes() == b""


def test_a_damaged_checkpoint_is_no_obstacle_to_the_lock(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000001"
    with RunLock(tmp_path):
        pass
    folder.mkdir()
    (folder / "checkpoint.json").write_text("{}")  # damaged: passed over
    (tmp_path / "attempt.json").unlink()
    with RunLock(tmp_path) as mine:
        assert mine.attempt.number == 0


def test_a_live_process_on_this_host_keeps_others_out(tmp_path):
    script = (
        "import sys, time; from megatron_codemix.train.lock import RunLock;"
        "RunLock(sys.argv[1]).__enter__(); print('held', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(PassingError, match=f"process {child.pid} on .* is training into this folder"):
            RunLock(tmp_path).__enter__()
    finally:
        child.kill()
        child.wait()
    begun = time.monotonic()
    with RunLock(tmp_path) as mine:
        assert mine.attempt.number == 1
    assert time.monotonic() - begun < 0.5, "a killed process of this host is not waited for"


def test_a_holder_on_another_host_that_shows_signs_of_life_is_left_alone(tmp_path):
    path, stop = held_by(tmp_path, ELSEWHERE), threading.Event()

    def live() -> None:
        while not stop.wait(0.05):
            os.utime(path)

    beating = threading.Thread(target=live)
    beating.start()
    try:
        with pytest.raises(UserError, match="process 7 on elsewhere is training into this folder"):
            RunLock(tmp_path).__enter__()
    finally:
        stop.set()
        beating.join()
    assert json.loads(path.read_text()) == ELSEWHERE
    assert not (tmp_path / "attempt.json").exists()


@pytest.mark.parametrize("seconds_ago, watched", [(0.0, True), (-3600.0, True), (700.0, False)])
def test_a_silent_holder_on_another_host_is_replaced_in_seconds(tmp_path, capsys, seconds_ago, watched):
    """However far its clock is off; without watching where it has long been silent."""
    held_by(tmp_path, ELSEWHERE, seconds_ago)
    begun = time.monotonic()
    with RunLock(tmp_path) as mine:
        assert mine.is_held()
    assert (time.monotonic() - begun >= 0.6) == watched
    assert ("watching for 0.6 s" in capsys.readouterr().err) == watched


def test_the_heartbeat_is_what_such_a_watcher_sees(tmp_path):
    with RunLock(tmp_path):
        path = tmp_path / "train.lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_a_restart_of_the_same_slurm_job_does_not_wait(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    held_by(tmp_path, {**ELSEWHERE, "job": "42", "restart": 1})
    begun = time.monotonic()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "train.lock").read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot": lock._boot(),
            "job": "42",
            "restart": 2,
        }
    assert time.monotonic() - begun < 0.5
    assert "watching" not in capsys.readouterr().err


@pytest.mark.parametrize("holder", [{"job": "41", "restart": 0}, {"job": "42", "restart": 2}, {}])
def test_any_other_job_is_watched_first(tmp_path, monkeypatch, capsys, holder):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    held_by(tmp_path, {**ELSEWHERE, **holder})
    with RunLock(tmp_path):
        pass
    assert "watching" in capsys.readouterr().err


def test_a_lock_that_outlives_its_lost_node_gives_way_to_the_restart(tmp_path, monkeypatch):
    """The server still holds the lock of a node that is gone: here a child holds it, under another host's name."""
    script = (
        "import sys, time, json; from megatron_codemix.train.lock import RunLock; lock = RunLock(sys.argv[1]).__enter__();"
        "open(lock.path, 'r+').write(json.dumps({'pid': 7, 'host': 'elsewhere', 'job': '42', 'restart': 0}).ljust(200));"
        "print('held', flush=True); sys.stdin.readline(); print(lock.is_held(), flush=True)"
    )
    # the child keeps the lock through its own descriptor although it has opened and closed the file: so it locks again
    script = script.replace("print('held'", "import fcntl; fcntl.lockf(lock._descriptor, fcntl.LOCK_EX); print('held'")
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdin is not None
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="process 7 on elsewhere"):
            RunLock(tmp_path).__enter__()
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with RunLock(tmp_path) as mine:
            assert mine.is_held() and mine.attempt.number == 1
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "False\n", "the old holder knows"
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without record locks."""

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)


def test_without_locks_a_live_holder_on_this_very_host_is_left_alone(tmp_path, no_locks):
    with RunLock(tmp_path) as first:
        lock._held.clear()  # the second is to pass for another process
        with pytest.raises(UserError, match="is training into this folder"):
            RunLock(tmp_path).__enter__()
        assert first.is_held()


def test_without_locks_a_dead_holder_on_this_host_is_replaced_once_it_was_watched(tmp_path, no_locks, capsys):
    held_by(tmp_path, {"pid": 7, "host": socket.gethostname(), "boot": lock._boot()})
    with RunLock(tmp_path) as mine:
        assert mine.is_held()
    assert "watching for 0.6 s" in capsys.readouterr().err


def test_a_host_of_the_same_name_is_another_host(tmp_path, capsys):
    held_by(tmp_path, {"pid": 7, "host": socket.gethostname(), "boot": "another"})
    with RunLock(tmp_path):
        pass
    assert "watching for 0.6 s" in capsys.readouterr().err


def test_a_disk_that_does_not_answer_right_now_ends_no_step(tmp_path, monkeypatch):
    def stale(*arguments):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with RunLock(tmp_path) as mine:
        assert mine.is_held()
        with monkeypatch.context() as patched:
            patched.setattr(lock.os, "pread", stale)
            assert mine.is_held()
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                mine.require_held()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", stale)
            assert mine.is_held()
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                mine.require_held()
        mine.require_held()
        held_by(tmp_path, ELSEWHERE)
        assert not mine.is_held()
        monkeypatch.setattr(lock.os, "pread", stale)
        assert not mine.is_held(), "the last answer stands"


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
def test_a_full_disk_at_the_start_is_one_line(tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(lock.os, call, full)
        with pytest.raises(UserError, match=r"train\.lock: cannot be written to \(No space left on device\); make room"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path) as mine:
        assert mine.is_held()


def test_it_shows_that_it_lives_while_it_sweeps(tmp_path, monkeypatch):
    """What a killed process left may take minutes to delete."""
    prepare, touched = lock.prepare_store, []

    def slow(run_folder):
        path = tmp_path / "train.lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        touched.append(path.stat().st_mtime > 1)
        prepare(run_folder)

    monkeypatch.setattr(lock, "prepare_store", slow)
    with RunLock(tmp_path):
        assert touched == [True]

    def fail(run_folder):
        raise UserError("no")

    monkeypatch.setattr(lock, "prepare_store", fail)
    with pytest.raises(UserError):
        RunLock(tmp_path).__enter__()
    assert not [thread for thread in threading.enumerate() if thread.name == "codemix-lock"]


@pytest.mark.parametrize("how", ["lock", "attempt", "new file"])
def test_who_was_replaced_finds_out_and_leaves_the_file_alone(tmp_path, how):
    with RunLock(tmp_path) as mine:
        mine.require_held()
        if how == "lock":
            held_by(tmp_path, ELSEWHERE)
        elif how == "new file":
            (tmp_path / "train.lock").unlink()
            held_by(tmp_path, ELSEWHERE)
        else:
            content = json.loads((tmp_path / "attempt.json").read_text())
            (tmp_path / "attempt.json").write_text(json.dumps({**content, "attempt": 5}))
        assert not mine.is_held()
        with pytest.raises(Superseded, match="another process has taken this folder over"):
            mine.require_held()
    assert how == "attempt" or json.loads((tmp_path / "train.lock").read_text()) == ELSEWHERE


def test_a_deleted_lock_file_is_nobody_elses(tmp_path):
    with RunLock(tmp_path) as mine:
        (tmp_path / "train.lock").unlink()
        assert mine.is_held()


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="this process is training into it already"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path) as mine:
        assert mine.is_held()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written to"):
            RunLock(folder).__enter__()
