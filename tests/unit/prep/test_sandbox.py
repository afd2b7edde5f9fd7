"""The sandbox of bubblewrap: verdicts of honest and hostile programs, and nothing gets out of it; skipped where there is none."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import time

import pytest

from data_prep.sandbox import Bubblewrap, Limits, Outcome, Program, Verdict, bubblewrap
from data_prep.sandbox.seccomp import seccomp_filter
from megatron_codemix.errors import UserError


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Bubblewrap(Limits(seconds=3, memory_bytes=256 << 20, processes=8))
    except UserError as error:
        pytest.skip(str(error))


def test_a_bubblewrap_that_does_not_isolate_is_refused(tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -c ]; do last=$1; shift; done\nexec /usr/bin/python3 -c "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "_PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="cannot be had here"):
        Bubblewrap()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_what_it_lists_and_nothing_else(machine):
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    names = ("read", "ptrace", "clone", "clone3", "socket", "execve", "unshare", "futex", "io_uring")
    column = {"x86_64": (0, 101, 56, 435, 41, 59, 272, 202, 425), "aarch64": (63, 117, 220, 435, 198, 221, 97, 98, 425)}[machine]
    number = dict(zip(names, column, strict=True))
    allow, eperm, enosys = 0x7FFF0000, 0x50001, 0x50026
    expected = [("read", 0, allow), ("ptrace", 0, eperm), ("unshare", 0, eperm), ("io_uring", 0, eperm), ("execve", 0, allow)]
    expected += [("clone", 0x11, allow), ("clone", 0x10000011, eperm), ("clone3", 0, enosys), ("futex", 9, allow)]
    expected += [("socket", 1, allow), ("socket", 2, eperm), ("socket", 16, eperm)]
    for name, argument, verdict in expected:
        assert judged(seccomp_filter(machine), architecture, number[name], argument) == verdict, (name, argument)
    assert judged(seccomp_filter(machine), 0x40000003, number["read"], 0) == 0x80000000
    assert judged(seccomp_filter(machine), architecture, 0x40000000 + number["read"], 0) == eperm
    assert seccomp_filter("riscv64") is None


def judged(program, architecture, number, argument):
    """What a classic BPF program returns for a system call."""
    instructions = list(struct.iter_unpack("<HBBI", program))
    data = struct.pack("<IIQQ", number, architecture, 0, argument) + bytes(40)
    accumulator, place = 0, 0
    while True:
        code, yes, no, value = instructions[place]
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
            place += 1
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        place += 1 + (yes if holds else no)


FORGERY = """
import os
for fd in range(3, 60):
    try:
        os.write(fd, b'x' * 16 + b'["passed", ""]')
    except OSError:
        pass
os._exit(0)
"""


@pytest.mark.parametrize(
    "code, tests, verdict",
    [
        ("x = 1", (), Verdict.PASSED),
        ("if __name__ == '__main__':\n    raise ValueError", (), Verdict.RAISED),
        ("if __name__ == '__main__':\n    raise ValueError", ("assert 1",), Verdict.PASSED),
        ("def f(x):\n    return x", ("assert f(1) == 1", "assert f(2) == 2"), Verdict.PASSED),
        ("def f(x):\n    return x", ("assert f(1) == 1", "assert f(2) == 1"), Verdict.FAILED),
        ("def f(x):\n    return x", ("assert g(1)",), Verdict.FAILED),
        ("raise ValueError('no')", (), Verdict.RAISED),
        ("input()", (), Verdict.RAISED),
        ("def f(:", (), Verdict.SYNTAX),
        ("x = '\0'", (), Verdict.SYNTAX),
        ("(" * 10_000, (), Verdict.SYNTAX),
        ("import sys\nsys.exit(0)", (), Verdict.PASSED),
        ("import sys\nsys.exit(3)", (), Verdict.RAISED),
        ("import sys\nsys.exit(0)", ("assert 0",), Verdict.RAISED),
        ("import os\nos._exit(0)", (), Verdict.ENDED_EARLY),
        ("import os\nos._exit(0)", ("assert 0",), Verdict.ENDED_EARLY),
        ("print('[\"passed\", \"\"]')\nimport os\nos._exit(0)", ("assert 0",), Verdict.ENDED_EARLY),
        (FORGERY, ("assert 0",), Verdict.ENDED_EARLY),
        ("def f(n):\n    return f(n + 1)\nf(0)", (), Verdict.RAISED),
        ("x = [bytearray(50 << 20) for _ in range(100)]", (), Verdict.MEMORY),
        ("while True: pass", (), Verdict.TIMED_OUT),
        ("import time\ntime.sleep(600)", (), Verdict.TIMED_OUT),
        ("import ctypes\nctypes.string_at(0)", (), Verdict.CRASHED),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", (), Verdict.CRASHED),
        ("import asyncio\nasync def f():\n    return 1\nassert asyncio.run(f()) == 1", (), Verdict.PASSED),
        ("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 0", ("assert A(3).x == 3",), Verdict.PASSED),
        ("import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'x')", (), Verdict.PASSED),
        ("import sys\nwhile True:\n    sys.stdout.write('x' * 65536)", (), Verdict.TIMED_OUT),
        ("x = '\ud800'", (), Verdict.SYNTAX),
    ],
)  # fmt: skip
def test_verdicts(sandbox, code, tests, verdict):
    assert sandbox.run(Program(code, tests)).verdict == verdict


OWN_WORDS = """
import os, sys
frame = sys._getframe()
while frame:
    if 'token' in frame.f_locals and 'out' in frame.f_locals:
        os.write(frame.f_locals['out'], frame.f_locals['token'] + WORDS)
        os._exit(0)
    frame = frame.f_back
"""


@pytest.mark.parametrize(
    "words",
    [
        b'["x", "y"]', b'["passed", {"a": 1}]', b'["passed"]', b"[1, 2]", b"{}", b"null", b"9", b"no JSON", b"\xff\xfe",
        b"", b'[["passed"], ""]', b"[" * 30_000, b'["passed", "", "3.12"]', b'["raised", null]', b"9" * 5000, b'["passed", NaN]',
        *(b'["passed", %b%b]' % (b"[" * depth, b"]" * depth) for depth in range(940, 1000, 10)),
    ],
)  # fmt: skip
def test_a_program_that_speaks_for_the_one_that_watches_it(sandbox, words):
    outcome = sandbox.run(Program(OWN_WORDS.replace("WORDS", repr(words))))
    assert outcome == Outcome(Verdict.CRASHED, "it ended the process that watched it")


@pytest.mark.parametrize("detail", ["\ud800", "\x1b[31m", "a\nb"])
def test_odd_details_are_texts(sandbox, detail):
    outcome = sandbox.run(Program(f"raise ValueError({detail!r})"))
    assert outcome.verdict == Verdict.RAISED
    assert outcome.detail.startswith("ValueError: ")
    outcome.detail.encode("utf-8")


NOTHING_GETS_OUT = {
    "files": """
        for path in ("/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/mem", "/srv", "/var/lib", "/sys"):
            assert not os.path.exists(path), path
    """,
    "environment": "assert set(os.environ) <= {'PATH', 'HOME', 'PYTHONHASHSEED', 'PWD', 'LC_CTYPE'}, dict(os.environ)",
    "identity": "assert os.getuid() == 65534 and os.getgid() == 65534 and not os.getgroups()[1:]",
    "writing": """
        for path in ("/x", "/usr/x", "/usr/bin/x", "/dev/x", "/lib/x"):
            try:
                open(path, "w")
            except OSError:
                continue
            raise SystemExit(path)
    """,
    "network": """
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
            try:
                socket.socket(family, socket.SOCK_DGRAM)
            except OSError:
                continue
            raise SystemExit(str(family))
    """,
    "kernel": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == -1 and libc.ptrace(16, 1, 0, 0) == -1 and libc.mount(b"x", b"/tmp", b"tmpfs", 0, None) == -1
    """,
    "disk": """
        written = 0
        try:
            for number in range(64):
                with open(f"/tmp/{number}", "wb") as file:
                    written += file.write(bytes(1 << 20))
        except OSError:
            pass
        assert written <= 20 << 20, written
        try:
            with open("/dev/shm/x", "wb") as file:
                file.write(bytes(4 << 20))
        except OSError:
            pass
        else:
            raise SystemExit("shm")
    """,
    "processes": """
        started = 0
        try:
            for _ in range(64):
                if os.fork() == 0:
                    import time
                    time.sleep(60)
                    os._exit(0)
                started += 1
        except OSError:
            pass
        assert started < 16, started
    """,
}


@pytest.mark.parametrize("what", NOTHING_GETS_OUT)
def test_nothing_gets_out(sandbox, what, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    lines = NOTHING_GETS_OUT[what].splitlines()
    code = "import os\n" + "\n".join(line.removeprefix("        ") for line in lines)
    assert sandbox.run(Program(code)) == Outcome(Verdict.PASSED, "")


def test_no_process_outlives_its_program(sandbox):
    code = "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(7531)\n    os._exit(0)\n"
    assert sandbox.run(Program(code)).verdict == Verdict.PASSED
    assert sandbox.run(Program("import os\nwhile True:\n    os.fork()")).verdict != Verdict.PASSED
    for _ in range(50):
        left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        mine = [line for line in left.splitlines() if "sandbox/driver" in line or "Runs one program inside of the sandbox" in line]
        if not mine:
            break
        time.sleep(0.1)
    assert mine == []


def test_programs_run_side_by_side(sandbox):
    outcomes = {}

    def one(number):
        outcomes[number] = sandbox.run(Program(f"assert {number} % 2")).verdict

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: Verdict.PASSED if number % 2 else Verdict.RAISED for number in range(8)}
