"""Training on a real Slurm that has machines crash, networks cut, jobs preempted, cancelled and short of room: what comes out in the
end is bit for bit what an undisturbed run on one machine gives, and nothing is started again that should not be."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(1500)


def test_nodes_crash_and_the_run_ends_as_if_they_had_not(
    cluster: Any, new_run: Callable[..., Any], undisturbed: Callable[..., Any]
) -> None:
    """2 nodes × 2 processes, TP2 × DP2: first the node without the batch shell is lost, then the one with it."""
    layout = {"tensor": 2}
    run = new_run("crash", parallel=layout)
    run.hold(0, 6)
    job = run.submit("--nodes", "2", "--time", "01:00:00")
    run.wait_held(0, 4)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).stdout.split()
    (worker,) = set(nodes) - {cluster.job(job)["BatchHost"]}
    run.hold(1, 10)
    cluster.crash(worker)
    crashed = time.time()
    started = datetime.fromisoformat(cluster.wait_restarted(job, 1)["StartTime"]).timestamp()
    run.wait_held(1, 4)
    assert run.chain("begin")[1]["step"] in (4, 6)
    first = next(line for line in run.raw_log() if line["kind"] == "step" and line["time"] > started)
    print(
        f"\nfrom the crash of a node to the first new step (step {first['step']}): {first['time'] - crashed:.1f} s, of which "
        f"{first['time'] - started:.1f} s after Slurm had started the job on a spare node"
    )

    cluster.boot(worker)
    cluster.crash(cluster.job(job)["BatchHost"])
    cluster.wait_restarted(job, 2)
    cluster.wait_for_job(job, "COMPLETED", seconds=600)
    run.assert_ended_like(undisturbed(4, parallel=layout))
    assert [line["restart"] for line in run.chain("begin")] == [0, 1, 2]
    assert [(line["restart"], line["how"]) for line in run.chain("end")] == [(2, "finished")]


def test_a_run_is_stopped_preempted_and_cancelled(cluster: Any, new_run: Callable[..., Any], undisturbed: Callable[..., Any]) -> None:
    run = new_run("stops", site={"signal_seconds": 300})
    run.hold(0, 5)
    job = run.submit("--nodes", "1", "--time", "01:00:00")
    run.wait_held(0, 2)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=6")  # the warning is due in a minute at most
    stop_file = run.output / "slurm" / f"stop.{job}.0"
    cluster.wait("the request to stop", stop_file.exists)
    run.hold(1, 8)
    run.release(0)
    cluster.wait_for_job(job, "PENDING", restarts=1)
    assert run.checkpoints()[-1] == 6
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    node = cluster.wait_restarted(job, 1)["BatchHost"]
    run.wait_held(1, 2)
    begun, leave = cluster.shared / "preemptor-began", cluster.shared / "preemptor-may-leave"
    body = f"touch {begun}; while [ ! -e {leave} ]; do sleep 0.1; done"
    cluster.submit("--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap", body)
    cluster.wait("the request to stop", (run.output / "slurm" / f"stop.{job}.1").exists)
    run.hold(2, 10)
    run.release(1)
    cluster.wait("the job that preempts", begun.exists)
    assert run.checkpoints()[-1] == 9
    leave.touch()

    cluster.wait_restarted(job, 2)
    run.wait_held(2, 2)
    cluster.run("scancel", job)
    cluster.wait_for_job(job, "CANCELLED")
    cluster.wait("the end of its batch shell", lambda: not cluster.run("squeue", "-h").stdout.strip())
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("CANCELLED", "2")
    assert [line["how"] for line in run.chain("end")][:2] == ["stopped", "stopped"]
    assert not any(line["again"] for line in run.chain("end")[2:])  # Slurm may have killed its shell before it said so

    again = run.submit("--nodes", "1", "--time", "01:00:00")  # the same command goes on
    cluster.wait_for_job(again, "COMPLETED", seconds=600)
    run.assert_ended_like(undisturbed(2))


def test_a_worker_that_is_killed_over_and_over_is_given_up(cluster: Any, new_run: Callable[..., Any]) -> None:
    run = new_run("killed", site={"max_restarts": 1})
    run.hold(0, 6)
    job = run.submit("--nodes", "1", "--time", "01:00:00")
    for start, next_step in enumerate((0, 0, None)):
        run.wait_held(start, 2)
        if next_step is not None:
            run.hold(start + 1, next_step)
        run.kill(start, rank=1 - start % 2, node=cluster.job(job)["BatchHost"])
        if next_step is not None:
            cluster.wait_restarted(job, start + 1)
    cluster.wait_for_job(job, "FAILED")
    assert [(line["how"], line["again"]) for line in run.chain("end")] == [("failed", True), ("failed", True), ("failed", False)]
    assert "given up" in run.said()
    assert 4 in run.checkpoints()
    assert cluster.run("squeue", "-h").stdout.strip() == ""


def test_a_network_is_cut_and_heals_with_the_old_trainers_alive(
    cluster: Any, new_run: Callable[..., Any], undisturbed: Callable[..., Any]
) -> None:
    """The old trainers go on, with a save held past every check, while their job runs elsewhere: what they do then is harmless."""
    run = new_run("cut")
    run.hold(0, 4, "publish")  # the save of step 4 is about to be renamed
    job = run.submit("--nodes", "1", "--time", "01:00:00")
    run.wait_held(0, 1, "publish")
    lost = cluster.job(job)["BatchHost"]
    run.hold(1, 8)
    cluster.cut(lost)
    assert cluster.wait_restarted(job, 1)["BatchHost"] != lost
    run.wait_held(1, 2)
    assert run.checkpoints()[-1] >= 6
    before = run.raw_log()

    run.release(0, "publish")
    cluster.wait("the old start to find out", lambda: "another start of this job has taken over" in run.said())
    assert "another process has taken this folder over" in run.said()
    assert not cluster.on(lost, "pgrep", "-f", "megatron_codemix train", check=False).stdout
    assert run.raw_log() == before
    cluster.heal(lost)
    cluster.wait("the node to be back", lambda: "idle" in cluster.run("sinfo", "-h", "-n", lost, "-p", "low", "-o", "%T").stdout)
    assert not cluster.on(lost, "pgrep", "-f", "sleep infinity", check=False).stdout
    run.release(1)
    assert cluster.wait_for_job(job, "COMPLETED", seconds=600)["Restarts"] == "1"  # nothing of the old start has ended the new one
    run.assert_ended_like(undisturbed(2), stale_attempt=0)


def test_a_quota_fills_up_under_a_run_and_room_is_made(cluster: Any, new_run: Callable[..., Any], undisturbed: Callable[..., Any]) -> None:
    ballast = cluster.small / "ballast"
    run = new_run("quota", output=cluster.small / "run")
    run.hold(0, 4)
    job = run.submit("--nodes", "1", "--time", "01:00:00")
    run.wait_held(0, 2)
    filled = cluster.run("dd", "if=/dev/zero", f"of={ballast}", "bs=4096", check=False)
    assert "No space left" in filled.stderr
    run.release(0)
    cluster.wait_for_job(job, "PENDING", restarts=1, seconds=600)
    assert "step 12 could not be saved" in run.said() and "make room" in run.said()
    cluster.run("rm", ballast)
    cluster.wait_restarted(job, 1)
    cluster.wait_for_job(job, "COMPLETED", seconds=600)
    run.assert_ended_like(undisturbed(2))
