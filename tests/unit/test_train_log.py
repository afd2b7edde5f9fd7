"""log.jsonl survives a crash at any byte, and a resumed run's later lines count; one writer per folder."""

import json
import os
import socket
import subprocess
import sys

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.train.lock import LOCK_NAME, RunLock
from megatron_codemix.train.log import LogFile, finished, read_log


def write(folder, *lines):
    log = LogFile(folder / "log.jsonl")
    for line in lines:
        log.append(line)
    log.close()


def step(number, loss):
    return {"kind": "step", "step": number, "loss": loss}


def test_round_trip_with_full_digits(tmp_path):
    lines = [{"kind": "start", "first_step": 0}, step(1, 0.1 + 0.2), step(2, 1e-300), {"kind": "end", "reason": "finished"}]
    write(tmp_path, *lines)
    assert read_log(tmp_path) == lines
    assert finished(tmp_path)


def test_a_crash_at_every_byte_of_the_last_line_leaves_the_lines_before_it(tmp_path):
    write(tmp_path, step(1, 1.5), step(2, 2.5))
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_log(tmp_path) == [step(1, 1.5)]
        write(tmp_path, step(2, 9.0))
        assert read_log(tmp_path) == [step(1, 1.5), step(2, 9.0)]


def test_a_torn_first_line_longer_than_a_chunk_is_cut_to_nothing(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"x" * 200_000)
    write(tmp_path, step(1, 1.0))
    assert read_log(tmp_path) == [step(1, 1.0)]


def test_a_resume_withdraws_the_steps_after_its_checkpoint(tmp_path):
    write(tmp_path, {"kind": "start", "first_step": 0}, step(1, 1.0), step(2, 2.0), step(3, 3.0))
    write(tmp_path, {"kind": "start", "first_step": 1}, step(2, 2.5))
    assert [(line.get("step"), line.get("loss")) for line in read_log(tmp_path) if line["kind"] == "step"] == [(1, 1.0), (2, 2.5)]
    assert not finished(tmp_path)


def test_an_altered_log_is_named_with_its_line(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"kind": "step"}\nnot json\n{"kind": "end"}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: not a JSON object"):
        read_log(tmp_path)


def test_a_missing_log_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such log"):
        read_log(tmp_path)
    assert not finished(tmp_path)


def test_nan_never_reaches_the_log(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write(tmp_path, step(1, float("nan")))
    assert (tmp_path / "log.jsonl").read_bytes() == b""


HOLD = """
import sys
from pathlib import Path
from megatron_codemix.train.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_live_process_excludes_others_and_a_killed_one_does_not(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {child.pid} on .* is training into this folder"):
            RunLock(tmp_path).__enter__()
    finally:
        child.kill()
        child.communicate()
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == child.pid  # it was killed: never released
    with RunLock(tmp_path) as lock:
        lock.touch()
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_NAME).read_bytes() == b""


def test_one_process_cannot_hold_a_folder_twice(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(UserError, match="this process is training into it already"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        assert (tmp_path / LOCK_NAME).stat().st_size


def test_a_holder_on_another_host_counts_until_it_has_been_silent_for_long(tmp_path):
    path = tmp_path / LOCK_NAME
    path.write_text(json.dumps({"pid": 7, "host": socket.gethostname() + "-other"}))
    with pytest.raises(UserError, match=r"process 7 on .*-other"):
        RunLock(tmp_path).__enter__()
    os.utime(path, (0, 0))
    with RunLock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written to"):
            RunLock(folder).__enter__()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_folder_that_another_process_took_over_is_left_alone(tmp_path, deleted):
    theirs = json.dumps({"pid": 7, "host": "elsewhere"})
    with RunLock(tmp_path) as lock:
        lock.require_held()
        if deleted:
            (tmp_path / LOCK_NAME).unlink()
            lock.require_held()  # by nobody, so far
        (tmp_path / LOCK_NAME).write_text(theirs)
        with pytest.raises(UserError, match="another process has taken this folder over"):
            lock.require_held()
    assert (tmp_path / LOCK_NAME).read_text() == theirs
