"""A real Slurm of three machines in namespaces of this host, and what can happen to a machine.

Everything lives in one pid, mount, network, host-name and IPC namespace, the world: login node and controller. Each node is
a further set of namespaces in it, with its own address, /tmp, /run and daemons. The world dies with the process that
started it (PR_SET_PDEATHSIG), and with the world every process, interface and mount in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]
NODES = ("n1", "n2", "n3")
GPUS = 2
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "setpriv", "ip")
_NAMESPACES = ("unshare", "-m", "-n", "-u", "-i", "-p", "--fork", "--kill-child", "--propagation", "private", "--")
_PROBE = "mount -t proc proc /proc && mount -t tmpfs tmpfs /run && ip link add br0 type bridge && hostname probe"
_OURS = ("PYTEST_", "SLURM_", "SBATCH_", "CODEMIX_", "TORCHELASTIC_")
"""Variables of the surroundings that the world must not inherit."""
Found = TypeVar("Found")


def reason_against() -> str | None:
    """Why there can be no world here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux: it makes namespaces and network interfaces"
    os.environ["PATH"] += "".join(f":{folder}" for folder in ("/usr/sbin", "/sbin") if folder not in os.environ["PATH"].split(":"))
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurm-wlm munge iproute2)"
    probe = subprocess.run([*_NAMESPACES, "bash", "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode != 0:
        return f"no namespaces can be made here ({(probe.stderr.strip().splitlines() or ['unshare failed'])[-1]})"
    return None


class Cluster:
    """The world, from `up` to `down`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = root / "shared"
        """What every node sees."""
        self.small = self.shared / "small"
        """… of 12 MiB."""
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{self._environment['PATH']}"
        self._environment["SLURM_CONF"] = str(root / "etc" / "slurm.conf")
        self._world: subprocess.Popen[bytes] | None = None
        self._init = 0  # process id of the world's init
        self._off: set[str] = set()
        self._cut: set[str] = set()

    def up(self) -> None:
        """Switch everything on; returns when all nodes are idle."""
        self._write_settings()
        world = [*_NAMESPACES, str(HERE / "world_init.sh"), str(self.root), str(len(NODES))]
        with open(self.root / "log" / "world.log", "wb") as log:
            # in a session of its own: a Ctrl-C is pytest's to handle
            started = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *world],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._world, ready = started, self.root / "run" / "ready"
        self.wait("the controller", lambda: ready.exists() or started.poll() is not None)
        assert started.poll() is None, self.story()
        self._init = int(Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()[0])
        for node in NODES:
            self._switch_on(node)
        self._wait_until_idle()

    def down(self) -> None:
        """Nothing of it is left when this returns."""
        if self._world is not None:
            self._world.kill()
            self._world.wait()
            self._world = None
        self._until(lambda: not self._init or not Path(f"/proc/{self._init}").exists(), 30)

    def run(self, *command: str | Path, check: bool = True, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command on the login node, in the shared folder; environment: variables beside the usual ones."""
        return self._enter(self._init, command, check, seconds, environment)

    def on(self, node: str, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on a node, as by its console: also when its network is cut."""
        outer = int(self.run("cat", f"/run/{node}.pid").stdout)
        inner = self.run("cat", f"/proc/{outer}/task/{outer}/children").stdout.split()[0]
        # the number is the world's: its own nsenter understands it
        return self.run("nsenter", "-t", inner, "-m", "-n", "-u", "-i", "-p", "--", *command, check=check)

    def crash(self, node: str) -> None:
        """The power fails: everything on the node is gone at once, without a word to anybody."""
        self.cut(node)  # first, or the kernel would still say good-bye on the connections
        self.run("bash", "-c", f"kill -9 $(cat /run/{node}.pid)")
        self._off.add(node)

    def boot(self, node: str) -> None:
        """Switch a crashed node on again."""
        self._off.discard(node)
        self.heal(node)
        self._switch_on(node)

    def cut(self, node: str) -> None:
        """Pull the network cable; what runs on the node runs on, and still has the shared folder."""
        self.run("ip", "link", "set", f"ve-{node}", "down")
        self._cut.add(node)

    def heal(self, node: str) -> None:
        """Put the cable back."""
        self.run("ip", "link", "set", f"ve-{node}", "up")
        self._cut.discard(node)

    def submit(self, *command: str | Path) -> str:
        """`sbatch --parsable COMMAND…`; returns the job's number."""
        return self.run("sbatch", "--parsable", *command).stdout.strip().partition(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of it: JobState, Restarts, BatchHost, NodeList, Reason, …"""
        words = self.run("scontrol", "--oneliner", "show", "job", number).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_soon(self, number: str) -> None:
        """A requeued job is eligible after two minutes, of which its nodes need one second to forget the start before."""
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+2", check=False)  # it may have started just now

    def wait_for_job(self, number: str, *states: str, restarts: int | None = None, seconds: float = 240) -> dict[str, str]:
        """Until the job is in one of these states (and was restarted so often); returns what `job` does."""

        def there() -> dict[str, str] | None:
            found = self.job(number)
            return found if found["JobState"] in states and restarts in (None, int(found["Restarts"])) else None

        return self.wait(f"job {number} in {' or '.join(states)}, restarts {restarts}", there, seconds)

    def wait_restarted(self, number: str, restarts: int, seconds: float = 240) -> dict[str, str]:
        """Until the job runs for the time that has so many before it; it need not wait for its two minutes."""
        self.wait_for_job(number, "PENDING", "RUNNING", restarts=restarts, seconds=seconds)
        self.start_soon(number)
        return self.wait_for_job(number, "RUNNING", restarts=restarts, seconds=seconds)

    def seen(self, path: Path) -> Path:
        """A path of the world as it can be opened from here: also on a file system that is mounted there alone."""
        return Path(f"/proc/{self._init}/root") / path.relative_to("/")

    def wait(self, what: str, look: Callable[[], Found | None], seconds: float = 240) -> Found:
        """Until `look` returns something true, which is returned; fails with the story so far."""
        found = self._until(look, seconds)
        assert found, f"waited {seconds:g} s for {what}\n{self.story()}"
        return found

    def reset(self) -> None:
        """No jobs, all nodes on, connected and idle: what the next test may take for granted."""
        self.run("scancel", "--user=root", check=False)
        for node in sorted(self._off):
            self.boot(node)
        for node in sorted(self._cut):
            self.heal(node)
        self.wait("the end of all jobs", lambda: not self.run("squeue", "-h", check=False).stdout.strip())
        self.run("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME", check=False)  # of one that a job has drained
        self._wait_until_idle()

    def story(self) -> str:
        """What the daemons and the jobs have written lately, for whoever reads a failure."""
        states = [self.run(*words, check=False).stdout for words in (("sinfo", "-N", "-l"), ("squeue", "-l"))] if self._init else []
        files = [*(self.root / "log").iterdir(), *self.shared.rglob("*.out"), *self.shared.rglob("*.log")]
        tails = [f"--- {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:]) for path in sorted(files)]
        return "\n".join([*states, *tails])

    def _write_settings(self) -> None:
        for name in ("etc", "run", "log", "state", "shared/small"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / name).chmod(0o755)
        key = self.root / "etc" / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        hosts = ["127.0.0.1 localhost", "10.77.0.254 ctl", *(f"10.77.0.{number} {node}" for number, node in enumerate(NODES, 1))]
        (self.root / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
        settings = (HERE / "slurm.conf.in").read_text()
        for name, value in (("@R@", str(self.root)), ("@N@", str(len(NODES))), ("@GPUS@", str(GPUS))):
            settings = settings.replace(name, value)
        (self.root / "etc" / "slurm.conf").write_text(settings)
        gpus = f"NodeName=n[1-{len(NODES)}] Name=gpu Type=h200 File=/run/fakegpu[0-{GPUS - 1}]\n"
        (self.root / "etc" / "gres.conf").write_text(gpus)
        (self.root / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _switch_on(self, node: str) -> None:
        shared = [path for path in (self.root, CHECKOUT, Path(sys.prefix)) if path.is_relative_to("/tmp")]
        self.run(HERE / "node_start.sh", self.root, node, str(GPUS), *shared)

    def _wait_until_idle(self) -> None:
        def idle() -> bool:
            shown = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T", check=False).stdout
            return sorted(shown.splitlines()) == [f"{node} idle" for node in NODES]

        self.wait("all nodes to be idle", idle, 120)

    def _enter(
        self, process: int, command: Sequence[str | Path], check: bool, seconds: float, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(process), "-m", "-n", "-u", "-i", "-p", f"--wdns={self.shared}", "--"]
        given = {**self._environment, **environment}
        ran = subprocess.run([*enter, *map(str, command)], capture_output=True, text=True, timeout=seconds, env=given)
        assert not check or ran.returncode == 0, f"{' '.join(map(str, command))}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran

    @staticmethod
    def _until(look: Callable[[], Found | None], seconds: float) -> Found | None:
        end = time.monotonic() + seconds
        while not (found := look()) and time.monotonic() < end:
            time.sleep(0.1)
        return found
