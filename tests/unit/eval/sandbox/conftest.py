"""A sandbox for the tests of this folder, and a look at the machine around it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import eval.sandbox as package
from eval.sandbox import Checks, Limits, Program, Verdict, open_sandbox
from eval.sandbox.watch import children, descendants
from megatron_codemix.errors import UserError

LIMITS = Limits(seconds=1, memory_bytes=256 << 20, processes=12, file_bytes=4 << 20, output_bytes=1 << 20)


@pytest.fixture(scope="session")
def sandbox():
    try:
        with open_sandbox(LIMITS, workers=1) as opened:
            yield opened
    except UserError as error:
        pytest.skip(str(error))


def modes():
    """Of the folders that a sandbox has its own of."""
    return [(os.stat(path).st_mode, os.stat(path).st_uid) for path in ("/tmp", "/dev/shm", "/usr", "/")]


@pytest.fixture(autouse=True)
def _folders_of_the_machine():
    before = modes()
    yield
    assert modes() == before


def tree(folder):
    """path → (content, mode) of all that is in a folder."""
    paths = sorted(Path(folder).rglob("*"))
    return {str(path): (path.read_bytes() if path.is_file() else None, path.lstat().st_mode) for path in paths}


class Host:
    """What a program could want to reach, and whether it did."""

    def __init__(self, folder, victim, listener, sandbox):
        self.folder, self.victim, self.listener, self.sandbox = folder, victim, listener, sandbox
        self.address = listener.getsockname()
        self.secret = folder / "secret.txt"
        # what other tests keep running in this process's care, a cluster of tests/slurm among it
        self.others = set(children(os.getpid())) - {victim.pid} - {zygote._started.process.pid for zygote in self._zygotes()}
        self.before = self.state()

    def state(self):
        sources = Path(package.__file__).parent
        return tree(self.folder), {str(path): path.read_bytes() for path in sources.rglob("*.py")}, os.getcwd()

    def _zygotes(self):
        return [zygote for worker in self.sandbox._workers for zygote in worker._zygotes.values()]

    def zygotes(self):
        return [zygote.first for zygote in self._zygotes()]

    def assert_unchanged(self):
        assert self.victim.poll() is None, "a process outside was killed"
        with pytest.raises(BlockingIOError):
            self.listener.accept()
        assert self.state() == self.before
        standing = set()
        for worker in self.sandbox._workers:
            for role, zygote in worker._zygotes.items():
                left = descendants(zygote.first)
                assert len(left) <= (role == "tester" and worker._standing is not None), "something outlived its program"
                standing.update(left)
        foreign = self.others.union(*map(descendants, self.others))
        mine = set(descendants(os.getpid())) - {self.victim.pid} - standing - foreign
        expected = {process for zygote in self._zygotes() for process in (zygote._started.process.pid, zygote.first)}
        assert mine == expected, "a process is there that was not"
        honest = self.sandbox.run(Program("def f(x):\n    return x + 1", Checks(("assert f(3) == 4",))))
        assert honest.verdict == Verdict.PASSED, honest


@pytest.fixture
def host(sandbox, tmp_path, monkeypatch):
    """Checked after the test as well."""
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "secret.txt").write_text("hunter2")
    tmp_path.chmod(0o777)
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    found = Host(tmp_path, victim, listener, sandbox)
    try:
        yield found
        found.assert_unchanged()
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        listener.close()
