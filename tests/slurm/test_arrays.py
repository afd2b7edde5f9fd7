"""Job arrays and chains on a real Slurm: what fails is done again alone, the result is that of one command on one machine, and
nothing waits for what can no longer come true."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.timeout(1200)
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
_THREADS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def codemix(cluster: Any, *words: str | Path, check: bool = True, seconds: float = 400) -> str:
    """A command on the login node; returns what it printed."""
    ran = cluster.run(sys.executable, "-m", "megatron_codemix", *words, check=check, seconds=seconds, **_THREADS)
    return ran.stdout + ran.stderr


def submitted(text: str) -> dict[str, str]:
    """Step → job, of what `codemix submit` printed."""
    return {step: job for job, step in re.findall(r"^job (\d+): (\w+)", text, re.MULTILINE)}


def states(cluster: Any, job: str) -> dict[str, str]:
    """Task → state; "N/A" for a job that is no array."""
    lines = cluster.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K %T").stdout.split("\n")
    return dict(line.split() for line in lines if line)


def wait_ended(cluster: Any, jobs: dict[str, str], seconds: float = 600) -> dict[str, dict[str, str]]:
    """Until none of the jobs is in the queue any more; step → states of its tasks."""

    def ended() -> dict[str, dict[str, str]] | None:
        found = {step: states(cluster, job) for step, job in jobs.items()}
        return found if all(state in _ENDED for tasks in found.values() for state in tasks.values()) else None

    return cluster.wait(f"the end of {jobs}", ended, seconds)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but what is kept to go on from."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not {".work", ".cache"} & set(path.parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def site(cluster: Any) -> Path:
    """A site file; jobs of it need no GPU."""
    path = cluster.shared / "arrays.yaml"
    path.write_text(yaml.safe_dump({"partition": "low", "python": sys.executable, "time": "01:00:00", "environment": _THREADS}))
    return path


def test_a_prep_array_does_again_what_failed_alone_and_gives_what_one_machine_gives(cluster: Any, site: Path) -> None:
    folder = cluster.shared / "prep"
    folder.mkdir()
    draw = random.Random(1)
    for number in range(3):
        rows = [
            {"text": f"def f{item % 70}_{number}(x):\n    return x + {draw.randint(0, 99)}\n" * 4, "path": f"{number}/{item}.py"}
            for item in range(80)
        ]
        (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))
    source = {"kind": "jsonl", "modality": "code", "paths": [str(folder / f"part-{number}.jsonl.gz") for number in range(3)]}
    config = {
        "output": str(folder / "out"),
        "sources": {"code": {**source, "id_field": "path"}},
        "deduplicate": {"exact": True},
        "split": {"validation": 0.2},
        "tokenizer": {"vocab_size": 440, "sample_bytes": 100_000},
        "workers": 1,
    }
    (folder / "prep.yaml").write_text(yaml.safe_dump(config))
    codemix(cluster, "prep", "run", folder / "prep.yaml")
    whole = tree(folder / "out")
    shutil.rmtree(folder / "out")

    good = (folder / "part-2.jsonl.gz").read_bytes()
    (folder / "part-2.jsonl.gz").write_bytes(good[:200] + bytes(20) + good[220:])  # of the same size: how work is divided goes by that
    command = ("submit", "prep", folder / "prep.yaml", "--tasks", "3", "--cpus", "1", "--site", site)
    jobs = submitted(codemix(cluster, *command))
    assert list(jobs) == ["clean", "decide", "tokenizer", "shards", "merge"]
    ended = wait_ended(cluster, jobs)
    (failed,) = (task for task, state in ended["clean"].items() if state == "FAILED")
    assert sorted(ended["clean"].values()) == ["COMPLETED"] * 2 + ["FAILED"]
    assert {state for step in list(jobs)[1:] for state in ended[step].values()} == {"CANCELLED"}
    assert f"failed: clean-000{failed}-of-0003" in codemix(cluster, "jobs", folder / "out")

    (folder / "part-2.jsonl.gz").write_bytes(good)
    told = codemix(cluster, *command)
    assert f"clean, 1 of 3 tasks ({failed})" in told
    jobs = submitted(told)
    ended = wait_ended(cluster, jobs)
    assert ended["clean"] == {failed: "COMPLETED"}
    assert {state for tasks in ended.values() for state in tasks.values()} == {"COMPLETED"}
    assert tree(folder / "out") == whole
    assert "nothing to submit: all of it is done" in codemix(cluster, *command)


def test_a_chain_whose_training_starts_again_ends_in_the_results_of_a_local_evaluation(
    cluster: Any, new_run: Callable[..., Any], slurm_corpus: Path
) -> None:
    run = new_run("chain", site={"processes_per_node": 1})
    (run.folder / "docs.jsonl").write_text("".join(json.dumps({"text": f"def f{item}(x):\n    return x\n"}) + "\n" for item in range(6)))
    good = "".join(json.dumps({"query": "def", "choices": [" f1(x)", " return"], "gold": gold}) + "\n" for gold in (0, 1, 0))
    (run.folder / "rows.jsonl").write_text(good + "{cut off")
    tasks = f"tasks: {{choice: {{kind: multiple_choice, data: {run.folder}/rows.jsonl}}}}\n"
    (run.folder / "tasks.yaml").write_text(tasks)
    measured = ["--bits-per-byte", f"code={run.folder}/docs.jsonl", "--tasks", str(run.folder / "tasks.yaml"), "--device", "cpu"]
    command = ["submit", "chain", run.file, "--site", run.site, "--nodes", "1", "--time", "01:00:00", "--cpus", "1", *measured]
    run.hold(0, 5)
    jobs = submitted(codemix(cluster, *command))
    assert list(jobs) == ["train", "convert", "evaluate", "join"]
    run.wait_held(0, 1)
    shown = codemix(cluster, "jobs")
    assert re.search(rf"^{jobs['train']} +faulty +running +1 +0 +5/12 ", shown, re.MULTILINE), shown
    assert shown.count("Dependency") == 3, shown
    told = codemix(cluster, *command)  # a second time: all of it is in the queue
    assert submitted(told) == {"trains": jobs["train"]}, told
    assert len(cluster.run("squeue", "-h", "-o", "%F").stdout.split()) == 4

    cluster.run("scancel", "--batch", "--signal=USR1", jobs["train"])
    run.release(0)
    cluster.wait_for_job(jobs["train"], "PENDING", "RUNNING", restarts=1)
    assert states(cluster, jobs["convert"]) == {"N/A": "PENDING"}
    cluster.wait_restarted(jobs["train"], 1)
    ended = wait_ended(cluster, jobs)
    assert ended["train"] == ended["convert"] == {"N/A": "COMPLETED"}
    assert ended["evaluate"] == {"0": "COMPLETED", "1": "FAILED"} and ended["join"] == {"N/A": "FAILED"}
    assert "hf.tasks: failed with exit code 2; the same command submits it again alone" in run.said()
    assert not (run.output / "eval").exists()

    (run.folder / "rows.jsonl").write_text(good)
    told = codemix(cluster, *command)
    assert "the run is finished" in told and "evaluate, 1 of 2 tasks (1)" in told
    ended = wait_ended(cluster, submitted(told))
    assert ended == {"evaluate": {"1": "COMPLETED"}, "join": {"N/A": "COMPLETED"}}
    codemix(cluster, "eval", run.folder / "run" / "hf", "--output", run.folder / "local", *measured)
    assert tree(run.output / "eval") == tree(run.folder / "local")
    assert len(tree(run.output / "eval")) == 3
    assert "nothing to submit: all of it is done" in codemix(cluster, *command)


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
def test_what_follows_a_parent_that_ends_badly_does_not_wait_for_ever(
    cluster: Any, new_run: Callable[..., Any], slurm_corpus: Path, end: str
) -> None:
    run = new_run(f"parent-{end.replace(' ', '-')}", site={"python": "/bin/false"})
    documents = slurm_corpus / "code" / "valid" / "manifest.json"
    words = ["--nodes", "1", "--bits-per-byte", f"code={documents}", *(["--sbatch=--hold"] if end == "is cancelled" else [])]
    jobs = submitted(codemix(cluster, "submit", "chain", run.file, "--site", run.site, *words))
    if end == "is cancelled":
        cluster.run("scancel", jobs["train"])
        for job in (jobs["evaluate"], jobs["join"]):
            cluster.run("scontrol", "release", job, check=False)
    ended = wait_ended(cluster, jobs)
    assert ended["train"] == {"N/A": "FAILED" if end == "fails" else "CANCELLED"}
    assert set(ended["convert"].values()) | set(ended["evaluate"].values()) == {"CANCELLED"}
    assert ended["join"] == {"N/A": "FAILED"}
    cluster.wait("an empty queue", lambda: not cluster.run("squeue", "-h").stdout.strip())
