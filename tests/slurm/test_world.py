"""The cluster that the other tests run on is one: what its nodes share and what they do not, how they fail and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)


def test_nodes_are_machines_of_their_own_that_share_a_folder(cluster: Any) -> None:
    script = f"hostname; ls /tmp; touch /tmp/mine; echo $SLURM_RESTART_COUNT; touch {cluster.shared}/was-on-$(hostname)"
    ran = cluster.run("srun", "-N3", "--ntasks-per-node=1", "--gpus-per-node=2", "--label", "bash", "-c", script).stdout
    names = sorted(line.split(": ")[1] for line in ran.splitlines() if line.split(": ")[-1] in ("n1", "n2", "n3"))
    assert names == ["n1", "n2", "n3"]
    assert sorted(path.name for path in cluster.shared.glob("was-on-*")) == ["was-on-n1", "was-on-n2", "was-on-n3"]
    assert "mine" not in ran and not Path("/tmp/mine").exists()


def test_a_crashed_node_loses_its_job_to_a_spare_one_and_a_cut_one_runs_on(cluster: Any) -> None:
    beats = cluster.shared / "beats"
    beats.mkdir()
    body = f"while :; do date +%s%N > {beats}/$(hostname).${{SLURM_RESTART_COUNT:-0}}; sleep 0.1; done"
    job = cluster.submit("--requeue", "--exclude=n3", "-o", f"{cluster.shared}/%j.out", "--wrap", body)
    first = cluster.wait_for_job(job, "RUNNING")["BatchHost"]
    cluster.wait("the first beat", (beats / f"{first}.0").exists)
    cluster.crash(first)
    second = cluster.wait_restarted(job, 1)["BatchHost"]
    assert {first, second} == {"n1", "n2"}
    cluster.wait("a beat there", (beats / f"{second}.1").exists)

    cluster.boot(first)
    cluster.cut(second)
    assert cluster.wait_restarted(job, 2)["BatchHost"] == first
    stale, now = beats / f"{second}.1", beats / f"{first}.2"
    cluster.wait("both to beat", now.exists)
    before = stale.read_text()
    cluster.wait("the cut node to beat on", lambda: stale.read_text() not in ("", before))
    cluster.heal(second)
    cluster.wait("the end of what ran there", lambda: not cluster.on(second, "pgrep", "-f", "beats", check=False).stdout)
    before = now.read_text()
    cluster.wait("the new one to beat on", lambda: now.read_text() not in ("", before))
    assert cluster.job(job)["JobState"] == "RUNNING"
