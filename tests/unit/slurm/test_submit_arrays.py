"""`codemix submit prep | evaluate | chain` with an sbatch and a squeue of our own on the PATH."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.stages import PER_CHUNK, STAGES
from megatron_codemix.cli import main
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.slurm import preparation
from megatron_codemix.slurm.arrays import Step, record_path
from megatron_codemix.slurm.pipeline import TRAINED
from megatron_codemix.train.changes import CHANGEABLE
from megatron_codemix.train.resume import FIXED

_SBATCH = """#!/usr/bin/env bash
# takes each script for a job: its number is that of the call
here=$(dirname "$0")
[ ! -e "$here/refuses" ] || { echo "sbatch: error: $(cat "$here/refuses")" >&2; exit 1; }
number=$(($(cat "$here/number" 2>/dev/null || echo 100) + 1))
echo $number > "$here/number"
cp "${@: -1}" "$here/$number.sbatch"
echo "$number;cluster"
"""


class Slurm:
    """What the fake programs were given, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in (("sbatch", _SBATCH), ("squeue", f'#!/bin/sh\ncat "{folder}/queue" 2>/dev/null || true\n')):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self._seen = 100

    def new_jobs(self) -> list[dict[str, str]]:
        """Options of the jobs that were submitted since the last call, by name without dashes; `text`: the script."""
        found = []
        while (script := self.folder / f"{self._seen + 1}.sbatch").exists():
            self._seen += 1
            lines = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
            options = dict(shlex.split(line)[0].partition("=")[::2] for line in lines)
            found.append({**options, "text": script.read_text(), "job": str(self._seen)})
        return found

    def queue(self, *tasks: tuple[str, str, str]) -> None:
        """(job, task, state) of what is in the queue."""
        fields = ((job, task, state, "None", "1", "name", "N/A", "N/A", "N/A", "", self._comment(job)) for job, task, state in tasks)
        lines = ["\x1f".join(words) for words in fields]
        (self.folder / "queue").write_text("".join(line + "\n" for line in lines))

    def _comment(self, job: str) -> str:
        script = self.folder / f"{job}.sbatch"
        lines = script.read_text().splitlines() if script.exists() else []
        found = [shlex.split(line)[1] for line in lines if line.startswith(("#SBATCH --comment", '#SBATCH "--comment'))]
        return found[0].partition("=")[2] if found else "(null)"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    found = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("CODEMIX_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def prep(tmp_path: Path) -> Path:
    source = {"kind": "jsonl", "modality": "code", "paths": [str(tmp_path / "a.jsonl")]}
    config = {"output": str(tmp_path / "out"), "sources": {"code": source}, "tokenizer": {"vocab_size": 900}}
    (tmp_path / "prep.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "prep.yaml"


def finish(folder: Path, step: Step, *tasks: int, returncode: int = 0) -> None:
    """As if these units had run."""
    for task in tasks or range(len(step.units)):
        unit = step.units[task]
        path = record_path(folder, unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format_version": 1, "key": unit.key(), "returncode": returncode}))


def test_prep_is_five_jobs_each_behind_the_one_before(slurm: Slurm, prep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "prep", str(prep), "--tasks", "3", "--cpus", "2", "--sbatch=--nice=7", "--at-once", "2"]
    assert main(words) == 0
    jobs = slurm.new_jobs()
    assert [job["job-name"] for job in jobs] == [f"prep-prep-{stage}" for stage in ("clean", "decide", "tokenizer", "shards", "merge")]
    assert [job.get("array") for job in jobs] == ["0-2%2", None, None, "0-2%2", None]
    assert [job.get("dependency") for job in jobs] == [None, "afterok:101", "afterok:102", "afterok:103", "afterok:104"]
    assert all(job["kill-on-invalid-dep"] == "yes" for job in jobs[1:])
    assert all(job["nice"] == "7" and job["cpus-per-task"] == "2" and "requeue" in job for job in jobs)
    assert f"set -- {prep} shards" in jobs[3]["text"] and "export PREP_TASKS=3" in jobs[3]["text"]
    told = capsys.readouterr().out
    assert "scancel 101 102 103 104 105" in told and str(prep.parent / "out") in told
    assert jobs[0]["comment"] == f"codemix prep {prep.parent / 'out.slurm'}"


def test_prep_submits_again_what_failed_and_what_follows(slurm: Slurm, prep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "prep", str(prep), "--tasks", "3"]
    config = load_config(prep, PrepConfig, [])
    clean, *others = preparation.steps_of(prep, [], config, 3)
    folder = preparation.folder_of(config)
    assert main(words) == 0
    slurm.new_jobs()
    finish(folder, clean, 0)
    finish(folder, clean, 1, returncode=2)
    slurm.queue(("101", "2", "RUNNING"), ("101", "1", "FAILED"), ("102", "N/A", "PENDING"), ("103", "N/A", "PENDING"))
    assert main([*words, "--retry-failed"]) == 0
    again, decide, *_ = slurm.new_jobs()
    assert again["array"] == "1" and "dependency" not in again
    assert decide["dependency"] == f"afterok:101_2:{again['job']}"
    assert "clean, 1 of 3 tasks (1)" in capsys.readouterr().out

    slurm.queue()
    for step in (clean, *others):
        finish(folder, step)
    assert main(words) == 0
    assert slurm.new_jobs() == [] and "all of it is done" in capsys.readouterr().out
    assert main([*words, "--again"]) == 0
    assert len(slurm.new_jobs()) == 5
    prep.write_text(prep.read_text() + "pack_tokens: 5000\n")  # other settings: nothing of it is done
    assert main(words) == 0
    assert len(slurm.new_jobs()) == 5


def test_a_second_command_waits_for_what_is_in_the_queue(slurm: Slurm, prep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "prep", str(prep), "--tasks", "1"]
    assert main(words) == 0
    jobs = slurm.new_jobs()
    slurm.queue(*((job["job"], "N/A", "PENDING") for job in jobs))
    capsys.readouterr()
    assert main(words) == 0
    assert slurm.new_jobs() == [] and "in the queue already: 101 102 103 104 105" in capsys.readouterr().out


def test_what_slurm_refuses_is_one_line_and_the_same_command_goes_on(slurm: Slurm, prep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm.folder / "refuses").write_text("invalid partition specified: nowhere")
    assert main(["submit", "prep", str(prep), "--tasks", "1"]) == 2
    told = capsys.readouterr().err
    assert "invalid partition specified: nowhere" in told and len(told.strip().splitlines()) == 1
    (slurm.folder / "refuses").unlink()
    assert main(["submit", "prep", str(prep), "--tasks", "1"]) == 0
    assert len(slurm.new_jobs()) == 5


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "models" / name for name in ("a", "b b")]
    for folder in found:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    return found


def test_evaluations_are_models_times_what_is_measured(
    slurm: Slurm, tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs.jsonl").write_text("{}")
    site = tmp_path / "site.yaml"
    site.write_text("gpus_per_node: 8\ncpus_per_task: 96\nmemory: 512G\n")
    words = ["submit", "evaluate", *map(str, models), "--output", "results", "--tasks", "reasoning", "arithmetic", "reasoning"]
    words += ["--bits-per-byte", "text=docs.jsonl", "--device", "cpu", "--limit", "5", "--site", str(site)]
    assert main(words) == 0
    array, join = slurm.new_jobs()
    assert array["array"] == "0-5" and array["gpus-per-node"] == "1" and array["cpus-per-task"] == "12" and "mem" not in array
    assert (
        "gpus-per-node" not in join
        and join["cpus-per-task"] == "1"
        and join["array"] == "0-1"
        and join["dependency"] == f"afterany:{array['job']}"
    )
    given = next(line for line in array["text"].splitlines() if line.startswith("set -- "))
    assert given == (
        f"set -- {models[0]} '{models[1]}' --output results --tasks reasoning arithmetic reasoning --bits-per-byte text=docs.jsonl "
        "--device cpu --limit 5"
    )
    facts = json.loads(next(tmp_path.glob("results.slurm/submit-*-evaluate/submitted.json")).read_text())
    assert facts["units"][:3] == ["a.bits-per-byte.text", "a.reasoning", "a.arithmetic"] and facts["units"][3].startswith("b-b.")
    assert "results/b-b/results.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "reasonin"], "did you mean 'reasoning'?"),
        (["--tasks", "none.yaml"], "no such file of tasks"),
        (["--bits-per-byte", "text"], "write DOMAIN=FILE"),
        (["--bits-per-byte", "text=none.jsonl"], "no such file"),
        (["--tasks", "piqa", "--data-dir", "none"], "no such folder"),
        ([], "nothing to measure"),
        (["--tasks", "piqa", "--time", "soon"], "not a time"),
        (["--tasks", "piqa", "--cpus", "0"], "give 1 or more"),
        (["--tasks", "piqa", "--devise", "cpu"], "did you mean --device"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(
    slurm: Slurm, models: list[Path], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["submit", "evaluate", str(models[0]), "--output", "results", *words]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) == 1
    assert slurm.new_jobs() == [] and not Path("results.slurm").exists()


def test_all_mistakes_are_told_at_once(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "evaluate", "nowhere", "--output", "results", "--tasks", "piq", "--bits-per-byte", "x"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_a_dry_run_prints_scripts_that_bash_can_read(slurm: Slurm, prep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "prep", str(prep), "--tasks", "2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/usr/bin/env bash") == 5 and "afterok:JOB_OF_CLEAN" in printed
    assert slurm.new_jobs() == [] and not (prep.parent / "out.slurm").exists()
    assert subprocess.run(["bash", "-n"], input=printed, text=True, capture_output=True).returncode == 0


def test_submitting_loads_no_torch(slurm: Slurm, prep: Path, models: list[Path]) -> None:
    for words in (["prep", str(prep), "--tasks", "2"], ["evaluate", str(models[0]), "--output", "results", "--tasks", "piqa"]):
        given = ["submit", *words, "--dry-run"]
        code = f"import sys; from megatron_codemix.cli import main; main({given!r}); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_stages_are_those_of_data_preparation() -> None:
    assert tuple(STAGES) == preparation.STAGES and frozenset(PER_CHUNK) == preparation.PER_CHUNK


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run whose inputs are there as far as a submission looks."""
    for split in ("train", "valid"):
        (tmp_path / "shards" / "code" / split).mkdir(parents=True)
        (tmp_path / "shards" / "code" / split / "manifest.json").write_text("{}")
    (tmp_path / "shards" / "tokenizer").mkdir()
    (tmp_path / "docs.jsonl").write_text("{}")
    stage = {"name": "only", "tokens": 4096, "mixture": {"code": 1}, "batch_size": 4, "sequence_length": 64}
    config = {
        "name": "first",
        "output": "runs/first",
        "tokenizer": "shards/tokenizer",
        "sources": {"code": {"path": "shards/code"}},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64},
        "stages": [{**stage, "learning_rate": {"shape": "constant", "peak": 0.001}}],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run.yaml"


def test_a_chain_is_four_jobs_each_behind_the_one_before(slurm: Slurm, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "chain", str(run_file), "--nodes", "2", "--time", "10:00:00", "--task-time", "1:00:00", "--hf-dtype", "bf16"]
    words += ["--bits-per-byte", "code=docs.jsonl", "--tasks", "arithmetic", "--limit", "3"]
    assert main(words) == 0
    train, convert, evaluate, join = slurm.new_jobs()
    assert [job["job-name"] for job in (train, convert, evaluate, join)] == ["first", "first-convert", "first-evaluate", "first-join"]
    assert [job["time"] for job in (train, convert, evaluate, join)] == ["10:00:00", "1:00:00", "1:00:00", "1:00:00"]
    assert [job.get("dependency") for job in (train, convert, evaluate, join)] == [None, "afterok:101", "afterok:102", "afterany:103"]
    assert all(job["kill-on-invalid-dep"] == "yes" for job in (convert, evaluate, join))
    assert train["nodes"] == "2" and evaluate["array"] == "0-1"
    run = Path("runs/first")
    assert f"set -- {run} {run / 'hf'} --hf-dtype bf16" in convert["text"]
    assert f"set -- {run / 'hf'} --output {run / 'eval'} --tasks arithmetic --bits-per-byte code=docs.jsonl --limit 3" in evaluate["text"]

    comment = f"codemix train {(run_file.parent / run).absolute()}"
    slurm.queue(*((str(job), "0" if job == 103 else "N/A", "PENDING") for job in (102, 103, 104)))
    with open(slurm.folder / "queue", "a") as handle:
        handle.write("\x1f".join(("101", "N/A", "RUNNING", "None", "2", "first", "N/A", "N/A", "N/A", "", comment)) + "\n")
        comment = f"codemix evaluate {run_file.parent / run / 'eval.slurm'}"
        handle.write("\x1f".join(("103", "1", "PENDING", "None", "1", "x", "N/A", "N/A", "N/A", "", comment)) + "\n")
    capsys.readouterr()
    assert main(words) == 0
    assert slurm.new_jobs() == [] and "job 101: trains into runs/first already" in capsys.readouterr().out


def test_a_finished_run_is_converted_and_evaluated_alone(slurm: Slurm, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/finished.json").write_text("{}")
    assert main(["submit", "chain", str(run_file), "--tasks", "arithmetic"]) == 0
    convert, evaluate, _ = slurm.new_jobs()
    assert "dependency" not in convert and evaluate["dependency"] == f"afterok:{convert['job']}"
    assert "the run is finished" in capsys.readouterr().out
    assert "array" not in evaluate  # one thing on one model


def test_a_finished_run_that_is_made_longer_is_trained_on(slurm: Slurm, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/finished.json").write_text("{}")
    Path("runs/first/config.yaml").write_text(run_file.read_text())
    assert main(["submit", "chain", str(run_file), "stages.0.tokens=8192", "--accept-changes"]) == 0
    train, convert = slurm.new_jobs()
    assert train["job-name"] == "first" and convert["dependency"] == f"afterok:{train['job']}"
    assert main(["submit", "chain", str(run_file), "logging.every_steps=7"]) == 0
    assert "the run is finished" in capsys.readouterr().out


def test_what_makes_a_run_another_is_what_the_trainer_says() -> None:
    assert set(TRAINED) == (FIXED | CHANGEABLE) - {"branch"}


def test_a_job_of_somebody_else_under_an_old_id_is_not_taken_for_ours(slurm: Slurm, prep: Path) -> None:
    words = ["submit", "prep", str(prep), "--tasks", "2"]
    assert main(words) == 0
    slurm.new_jobs()
    (slurm.folder / "101.sbatch").write_text("#SBATCH --comment=other\n")  # the cluster was set up anew, and counts from 1
    slurm.queue(("101", "0", "RUNNING"), ("101", "1", "RUNNING"))
    assert main(words) == 0
    assert len(slurm.new_jobs()) == 5


def test_a_chain_is_refused_as_a_whole(slurm: Slurm, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--tasks", "arithmetik"], ["--nodes", "0"], ["model.num_layer=3"], ["--task-time", "soon"]):
        assert main(["submit", "chain", str(run_file), *words]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert slurm.new_jobs() == [] and not Path("runs").exists()


def test_a_dry_run_of_a_chain_prints_all_scripts(slurm: Slurm, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "chain", str(run_file), "--tasks", "arithmetic", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/usr/bin/env bash") == 4 and "afterok:JOB_OF_TRAIN" in printed and "afterok:JOB_OF_CONVERT" in printed
    assert slurm.new_jobs() == [] and not Path("runs").exists()
