"""The coordinator with nodes that are processes of this machine: what they do wrong, and what is said of them."""

import json
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_codemix.slurm.preflight import channel
from megatron_codemix.slurm.preflight.command import main
from megatron_codemix.slurm.preflight.coordinator import Coordinator
from megatron_codemix.slurm.preflight.report import Report
from megatron_codemix.slurm.preflight.settings import PreflightConfig
from megatron_codemix.slurm.preflight.verdict import decide

_NODE = r"""
import json, sys, threading, time
mode = sys.argv[1]
lock = threading.Lock()
def say(**message):
    with lock:
        print(json.dumps(message), flush=True)
def beat():
    count = 0
    while mode != "frozen":
        count += mode == "slow"
        say(alive={"0": count})
        time.sleep(0.05)
if mode == "absent":
    sys.exit("srun: error: Unable to create step for job 1: Invalid node name specified")
if mode == "silent":
    time.sleep(60)
print("a banner that some login script prints")
say(hello="host", workers=1, gpus=0)
for name in ("disk run", "versions", "gpu", "torch 0"):
    say(begin=name)
threading.Thread(target=beat, daemon=True).start()
if mode == "frozen":
    time.sleep(60)
if mode == "full":
    say(end="disk run", fault="/run: a file of 1 MiB cannot be written and read (No space left on device)")
elif mode != "hung disk":
    say(end="disk run", found={"free_gib": 99.0, "clock_ahead_seconds": 0.0})
say(end="versions", found={"python": "3.12.1" if mode == "old" else "3.11.9", "code": "abc"})
say(end="gpu", found={"visible": 0, "devices": []})
if mode == "crash":
    say(end="torch 0", fault="process 0 ended (exit code -11): CUDA error")
elif mode != "hung torch":
    if mode == "slow":
        time.sleep(1.5)
    say(end="torch 0", found={"torch": "2.13.0", "store": "127.0.0.1:1"})
    say(begin="matmul 0")
    if mode == "wrong":
        say(end="matmul 0", fault="a matrix product is wrong in 3 of 768 rows")
    else:
        say(end="matmul 0", found={"tflops": 1.0 if mode == "lame" else 2.0})
if mode == "dies":
    sys.exit(7)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "clock":
        say(clock=time.time() + (300 if mode == "late" else 0), id=order["id"])
    elif order["do"] == "reduce" and mode == "no sum":
        say(reduce=order["id"], worker=0, fault="its sum is wrong in 7 of 1048576 places")
    elif order["do"] == "reduce" and mode != "deaf":
        say(reduce=order["id"], worker=0, gib=1.0)
    elif order["do"] == "end":
        break
"""


def _examine(modes: dict[str, str], **settings: Any) -> tuple[list[Report], str, float]:
    config = PreflightConfig(**{"stall_seconds": 4.0, "seconds": 100.0, **settings})
    began = time.monotonic()
    coordinator = Coordinator(list(modes), next(iter(modes)), config)
    reports, whole = coordinator.examine(lambda node: [sys.executable, "-S", "-c", _NODE, modes[node]], {"PATH": "/usr/bin:/bin"})
    return reports, whole, time.monotonic() - began


def _four(mode: str) -> dict[str, str]:
    return {"n1": "good", "n2": "good", "n3": mode, "n4": "good"}


def test_good_nodes_are_good() -> None:
    reports, whole, _ = _examine({"n1": "good", "n2": "good", "n3": "good"})
    verdict = decide(reports, 2)
    assert (verdict.chosen, verdict.spare, verdict.bad, whole) == (("n1", "n2"), ("n3",), (), "")
    assert all(abs(one.clock_offset or 9) < 1 and one.pairs for one in reports)


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("absent", "start", "cannot be started: srun: error: Unable to create step for job 1: Invalid node name specified"),
        ("full", "disk run", "/run: a file of 1 MiB cannot be written and read (No space left on device)"),
        ("crash", "torch", "process 0 ended (exit code -11): CUDA error"),
        ("wrong", "matmul", "a matrix product is wrong in 3 of 768 rows"),
        ("late", "clock", "clock is 300.0 s ahead of the others'"),
        ("old", "version of python", "python is 3.12.1, 3.11.9 on the others"),
        ("dies", "start", "its checks ended by themselves (exit code 7)"),
        ("deaf", "all-reduce", "failed: no answer from n3"),
        ("no sum", "all-reduce", "failed: n3: its sum is wrong in 7 of 1048576 places"),
    ],
)
def test_a_bad_node_is_named_with_its_reason_and_the_others_go_on(mode: str, kind: str, said: str) -> None:
    reports, whole, _ = _examine(_four(mode))
    verdict = decide(reports, 3)
    assert [node for node, _ in verdict.bad] == ["n3"]
    assert verdict.chosen == ("n1", "n2", "n4") and not whole
    bad = reports[2]
    assert [one.kind for one in bad.faults] == [kind]
    assert said in bad.reason and "\n" not in bad.reason
    lines = verdict.lines(3, 4)
    assert lines[0] == f"n3: {bad.reason}"
    assert lines[-1] == "3 of 4 nodes are good; training on n1, n2, n4, without n3"


def test_nodes_that_hang_are_named_with_what_they_hang_in() -> None:
    hangs = {"silent": "did not start within", "frozen": "has not answered for"}
    hangs |= {"hung disk": "hangs in its check of disk run", "hung torch": "hangs in its check of torch 0"}
    good = [f"n{number}" for number in range(5)]
    reports, _, spent = _examine({**dict.fromkeys(good, "good"), **{mode: mode for mode in hangs}})
    verdict = decide(reports, 5)
    assert list(verdict.chosen) == good
    assert [node for node, _ in verdict.bad] == list(hangs)
    assert all(reason.startswith(hangs[mode]) for mode, reason in verdict.bad)
    assert all([one.kind for one in report.faults] == ["hang"] for report in reports[5:])
    assert spent < 60, "the hundred seconds that a node may have were not waited for"


def test_a_node_that_is_slow_but_at_work_is_waited_for() -> None:
    reports, _, spent = _examine(_four("slow"))
    assert decide(reports, 4).chosen == ("n1", "n2", "n3", "n4")
    assert spent > 1.4


def test_a_node_that_is_never_ready_is_not_waited_for_longer_than_asked() -> None:
    reports, _, _ = _examine({"n1": "hung torch"}, seconds=3.0)
    assert [one.kind for one in reports[0].faults] == ["hang"]
    assert reports[0].reason.endswith("(open: torch 0)") or "did not start" in reports[0].reason


def test_a_fault_of_all_nodes_is_none_of_theirs() -> None:
    reports, _, _ = _examine({"n1": "full", "n2": "full"})
    verdict = decide(reports, 1)
    assert not verdict.goes_on
    assert "No space left" in verdict.stop
    assert verdict.lines(1, 2)[-1].startswith("all nodes have it in common, so others would not help: disk run: /run")


def test_nodes_without_a_gpu_are_not_judged_by_the_others_speed() -> None:
    reports, _, _ = _examine(_four("lame"), slowest=0.9)
    assert all(one.good for one in reports)
    reports, _, _ = _examine(_four("lame"), matmul_tflops=1.5)
    assert [one.node for one in reports if not one.good] == ["n3"]
    assert reports[2].reason == "matrix product on device 0: 1 TFLOP/s, 1.5 asked for"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    inbox: queue.SimpleQueue[channel.Message] = queue.SimpleQueue()
    stubborn = (
        "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    )
    one = channel.Channel("n1", [sys.executable, "-S", "-c", stubborn], {}, inbox)
    end = time.monotonic() + 30
    while not one.last_words().isdigit() and time.monotonic() < end:
        time.sleep(0.02)
    channel.end_all([one])
    assert inbox.get(timeout=10).content == {"gone": -9}


@pytest.mark.slow
def test_this_machine_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = json.dumps({"seconds": 300, "minimum_gib_free": 0})
    assert main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--settings", settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (node,) = found["nodes"]
    assert node["good"] and node["checks"]["matmul 0"]["tflops"] > 0
    assert {"disk run", "disk tmp", "versions", "gpu", "shared folder"} <= set(node["checks"])
    kept = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert kept["chosen"] == [node["node"]]
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [] and not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_two_agents_with_torch_add_up_what_they_should(tmp_path: Path) -> None:
    options = {"paths": {"run": str(tmp_path)}, "minimum_gib_free": 0, "memory_gib": 2, "gpus": None, "token": None}
    command = [sys.executable, "-P", "-m", "megatron_codemix.slurm.preflight.agent", json.dumps(options)]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    coordinator = Coordinator(["n1", "n2"], "n1", PreflightConfig(seconds=300, stall_seconds=60))
    reports, whole = coordinator.examine(lambda node: command, environment)
    assert [one.reason for one in reports] == ["", ""] and not whole
    assert reports[0].pairs["n2"] == reports[1].pairs["n1"] > 0


def test_what_a_batch_script_must_not_pay_for() -> None:
    code = "import sys, megatron_codemix.slurm.preflight.command, megatron_codemix.slurm.preflight.agent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
