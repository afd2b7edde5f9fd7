"""Bad nodes before training: named, left out or excluded, and the job goes on or says why not."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)
# CI's cores are few and busy: what hangs is told apart a little later than on a cluster
_PATIENT = {"seconds": 300, "stall_seconds": 20, "minimum_gib_free": 0, "clock_skew_seconds": 60}
_AGENT = "megatron_codemix.slurm.preflight.agent"
_LATE = "import time\n_real = time.time\ntime.time = lambda: _real() - 3600\n"


def _python(folder: Path, **faults: str) -> Path:
    """An interpreter for all nodes; where a node of `faults` starts its checks with it, that line of bash goes first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "late").mkdir(exist_ok=True)
    (folder / "late" / "sitecustomize.py").write_text(_LATE)
    cases = "".join(f'  "{node} "*{_AGENT}*) {line} ;;\n' for node, line in faults.items())
    path = folder / "python"
    path.write_text(f'#!/bin/bash\nlate={folder}/late\ncase "$(hostname) $*" in\n{cases}esac\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def _finished(run: Any) -> bool:
    return (run.output / "finished.json").is_file()


def test_spare_nodes_stand_in_for_one_that_hangs_and_one_whose_clock_is_wrong(cluster: Any, new_run: Callable[..., Any]) -> None:
    python = _python(cluster.shared / "preflight-spare", n1="exec sleep 1000", n2="export PYTHONPATH=$late")
    run = new_run("spare", site={"processes_per_node": 1, "python": str(python), "preflight": _PATIENT})
    job = run.submit("--nodes", "1", "--spare", "2")
    cluster.wait_for_job(job, "COMPLETED", seconds=600)
    said = run.said()
    assert re.search(r"^preflight: n1: did not start within \d+ s$", said, re.M), said
    assert re.search(r"^preflight: n2: clock is 3600\.\d s behind the others' \(60 allowed\)", said, re.M) or "n2: clock is 3600" in said
    assert re.search(r"^preflight: 1 of 3 nodes are good; training on n3, without n1, n2$", said, re.M)
    assert _finished(run) and cluster.job(job)["Restarts"] == "0"
    found = json.loads((run.output / "slurm" / f"preflight.{job}.0" / "verdict.json").read_text())
    assert found["chosen"] == ["n3"] and set(found["bad"]) == {"n1", "n2"}


def test_without_spare_nodes_the_next_start_goes_without_the_one_whose_disk_is_full(cluster: Any, new_run: Callable[..., Any]) -> None:
    scratch = "/run/scratch"
    cluster.on("n2", "mkdir", "-p", scratch)
    cluster.on("n2", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", scratch)
    try:
        run = new_run("excluded", site={"processes_per_node": 1, "preflight": _PATIENT})
        site = run.site.read_text().replace("environment:\n", f"environment:\n  TMPDIR: {scratch}\n")
        run.site.write_text(site)
        job = run.submit("--nodes", "2")
        assert cluster.wait_restarted(job, 1, seconds=400)["ExcNodeList"] == "n2"
        cluster.wait_for_job(job, "COMPLETED", seconds=600)
    finally:
        cluster.on("n2", "umount", scratch)
    said = run.said()
    assert "preflight: n2: disk tmp: /run/scratch: a file of 1 MiB cannot be written and read (No space left on device)" in said
    assert "preflight: 1 of 2 nodes is good, 2 needed" in said
    assert "the next start goes without n2" in said
    assert re.search(r"^preflight: 2 of 2 nodes are good; training on n1, n3$", said, re.M)
    assert _finished(run)
    assert [line["how"] for line in run.chain("end")] == ["failed", "finished"]


def test_a_fault_that_all_nodes_have_ends_the_job_with_its_reason(cluster: Any, new_run: Callable[..., Any]) -> None:
    run = new_run("common", site={"processes_per_node": 1, "preflight": {**_PATIENT, "minimum_gib_free": 1e6}})
    job = run.submit("--nodes", "2")
    assert cluster.wait_for_job(job, "FAILED", "COMPLETED", "PENDING", restarts=None, seconds=400)["JobState"] != "COMPLETED"
    cluster.wait_for_job(job, "FAILED", seconds=400)
    assert cluster.job(job)["Restarts"] == "0"
    assert "all nodes have it in common, so others would not help: disk run" in run.said()
    (end,) = run.chain("end")
    assert end["how"] == "refused" and not end["again"] and "1e+06 asked for" in end["why"]


def test_pairs_tell_which_node_has_the_wrong_interface(cluster: Any) -> None:
    folder = cluster.shared / "preflight-pairs"
    python = _python(folder, n2="export GLOO_SOCKET_IFNAME=lo")
    script, settings = folder / "look.sbatch", json.dumps({**_PATIENT, "stall_seconds": 10})
    command = f"{sys.executable} -P -m megatron_codemix preflight --batch --nodes n[1-3] --need 2 --run {folder}/run --out {folder}/out"
    script.write_text(f"#!/bin/bash\nexport CODEMIX_PYTHON={python} GLOO_SOCKET_IFNAME=eth0\n{command} --settings '{settings}'\n")
    job = cluster.submit("--nodes=3", f"--output={folder}/look.out", script)
    cluster.wait_for_job(job, "COMPLETED", seconds=600)
    said = (folder / "look.out").read_text()
    assert "2 of 3 nodes are good; training on n1, n3, without n2" in said, said
    assert re.search(r"^preflight: n2: all-reduce with .* failed: ", said, re.M)
    assert said.endswith("n1\nn3\n")
    print(*(line for line in said.splitlines() if "took" in line))
    assert json.loads((folder / "out" / "n3.json").read_text())["all_reduce_gib"].keys() == {"n1"}
