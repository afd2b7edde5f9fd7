"""What `codemix train --nproc` starts in test_launch.py: the real command line with a verb that fails, hangs or waits as asked.

python launch_worker.py launch NPROC SCENARIO FOLDER [hang=S] [join=S] [exit=S]    starts the workers
python launch_worker.py train SCENARIO FOLDER [join=S]                          is one
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from megatron_codemix import cli
from megatron_codemix.config import ParallelConfig, TimeoutConfig
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.train import launch as launching
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE, StopRequest
from megatron_codemix.train.watchdog import Watchdog

RANK = int(os.environ.get("RANK", "-1"))
# Stands where a rank stands that waits for others, at no cost of importing torch.
_LIKE_A_COLLECTIVE: dict = {"time": time}
exec(compile("def all_reduce():\n    time.sleep(600)\n", "/torch/distributed/distributed_c10d.py", "exec"), _LIKE_A_COLLECTIVE)


def joined(options: dict[str, float]):
    warnings.filterwarnings("ignore")
    from megatron_codemix.parallel import Topology

    return Topology.join(ParallelConfig(), timeouts=TimeoutConfig(join_seconds=options.get("join", 60.0)))


def announce(folder: Path) -> None:
    part = folder / f"{RANK}.part"
    part.write_text(str(os.getpid()))
    part.rename(folder / f"{RANK}.pid")


def raises(folder: Path, options: dict[str, float]) -> int:
    with joined(options) as topology:
        if RANK == 1:
            raise ValueError("this is the cause")
        topology.barrier()
    return 0


def killed(folder: Path, options: dict[str, float]) -> int:
    with joined(options) as topology:
        announce(folder)
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        topology.barrier()
    return 0


def user(folder: Path, options: dict[str, float]) -> int:
    raise UserError("sources.code: no such folder; mend the path")


def job(folder: Path, options: dict[str, float]) -> int:
    raise JobError("step 5: loss nan: training has diverged")


def silent(folder: Path, options: dict[str, float]) -> int:
    os._exit(3 if RANK == 1 else 0)


def _lost_or(error: Exception) -> int:
    """Rank 1 says what failed and takes long to leave; the other loses it at once."""
    if RANK == 1:
        atexit.register(time.sleep, 600)
        raise error
    time.sleep(0.5)
    raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:57123")


def raises_and_stays(folder: Path, options: dict[str, float]) -> int:
    return _lost_or(ValueError("this is the cause"))


def user_and_stays(folder: Path, options: dict[str, float]) -> int:
    return _lost_or(UserError("sources.code: unreadable here; mend the disk"))


def raises_and_nobody_notices(folder: Path, options: dict[str, float]) -> int:
    """As with NCCL: the others wait in a kernel for one that is stuck in its own end."""
    if RANK == 1:
        atexit.register(time.sleep, 600)
        raise ValueError("this is the cause")
    time.sleep(600)
    return 0


def talks(folder: Path, options: dict[str, float]) -> int:
    """More than a pipe holds; not of rank 0, which writes to the launcher's own output."""
    for number in range(20 if RANK > 0 else 0):
        print(f"{number} " + "x" * 10_000, flush=True)
    announce(folder)
    return 0


def missing(folder: Path, options: dict[str, float]) -> int:
    if RANK == 2:
        time.sleep(600)
    with joined(options):
        return 0


def hostless(folder: Path, options: dict[str, float]) -> int:
    if RANK == 0:
        time.sleep(600)
    with joined(options):
        return 0


def waits(folder: Path, options: dict[str, float]) -> int:
    announce(folder)
    print(f"rank {RANK} waits", flush=True)
    print("to stderr", file=sys.stderr)
    time.sleep(600)
    return 0


def stops(folder: Path, options: dict[str, float]) -> int:
    with StopRequest() as stop:
        announce(folder)
        while not stop.requested:
            time.sleep(0.02)
    return STOPPED_EXIT_CODE


def deaf(folder: Path, options: dict[str, float]) -> int:
    with StopRequest():
        announce(folder)
        while True:
            with suppress(KeyboardInterrupt):  # as if in C++, where nobody hears it
                time.sleep(600)


def lingers(folder: Path, options: dict[str, float]) -> int:
    with Watchdog(folder / "stacks", RANK, 0, 600.0) as watchdog:
        watchdog.beat(1, "step")
    if RANK == 1:
        threading.Thread(target=time.sleep, args=(600,)).start()
    return 0


def _hang(folder: Path, hang, wait) -> int:
    with Watchdog(folder / "stacks", RANK, 3, 600.0) as watchdog:
        for step in range(1, 18):
            watchdog.beat(step, "step")
        announce(folder)
        hang() if RANK == 1 else wait()
    return 0


def spins_in_python() -> None:
    while True:
        pass


def hangs(folder: Path, options: dict[str, float]) -> int:
    with joined(options) as topology:
        return _hang(folder, spins_in_python, topology.barrier)


def hangs_with_gil(folder: Path, options: dict[str, float]) -> int:
    return _hang(folder, lambda: ctypes.PyDLL(None).sleep(600), _LIKE_A_COLLECTIVE["all_reduce"])


def hangs_stopped(folder: Path, options: dict[str, float]) -> int:
    return _hang(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP), _LIKE_A_COLLECTIVE["all_reduce"])


def _options(given: list[str]) -> dict[str, float]:
    return {key: float(value) for key, value in (option.split("=") for option in given)}


def work(arguments: list[str]) -> int:
    scenario, folder, *options = arguments
    return globals()[scenario](Path(folder), _options(options))


def main() -> int:
    if sys.argv[1] == "train":
        cli.VERBS["train"] = (f"{__name__}:work", "as asked")
        return cli.main(sys.argv[1:])
    nproc, scenario, folder, *rest = sys.argv[2:]
    options = _options(rest)
    launching.EXIT_SECONDS = options.get("exit", launching.EXIT_SECONDS)
    launching.GRACE_SECONDS = options.get("grace", launching.GRACE_SECONDS)
    timeouts = TimeoutConfig(hang_seconds=options.get("hang", 600.0), join_seconds=options.get("join", 60.0))
    command = [sys.executable, __file__, "train", scenario, folder, *rest]
    code = launching.launch(command, int(nproc), timeouts, Path(folder) / "stacks")
    assert "torch" not in sys.modules, "the launcher has imported torch"
    return code


if __name__ == "__main__":
    sys.exit(main())
