"""`codemix submit RUN.yaml`: refused before Slurm hears of it, or written, handed over and noted. A stand-in answers for sbatch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_codemix.config import RunConfig, load_config
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.slurm import submit as submission
from megatron_codemix.slurm.begin import train_words
from megatron_codemix.slurm.command import SUBCOMMANDS, main
from megatron_codemix.slurm.script import SCRIPTS
from megatron_codemix.slurm.submit import OF_A_JOB

STAGE = {
    "name": "main",
    "tokens": 64 * 8,
    "mixture": {"code": 1.0},
    "batch_size": 8,
    "sequence_length": 64,
    "learning_rate": {"shape": "constant", "peak": 1e-3},
}
MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128}
ANSWER = 'cp "${@: -1}" "$ANSWERS/script"; env > "$ANSWERS/environment"; echo "$PWD" > "$ANSWERS/here"; echo "41;mini"'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run file and inputs that exist; sbatch takes everything as job 41, and nothing is in the queue."""
    for split in ("train", "valid"):
        (tmp_path / "code" / split).mkdir(parents=True)
        (tmp_path / "code" / split / "manifest.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("CODEMIX_SITE", raising=False)
    monkeypatch.setenv("ANSWERS", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "queue").write_text("")
    stand_in(tmp_path, "sbatch", ANSWER)
    stand_in(tmp_path, "squeue", 'cat "$ANSWERS/queue"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def write_run(folder: Path, **changes: Any) -> None:
    run = {"name": "tiny", "output": "out dir", "tokenizer": "tokenizer", "sources": {"code": {"path": "code"}}, "model": MODEL}
    (folder / "run.yaml").write_text(yaml.safe_dump({**run, "stages": [STAGE], **changes}))


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def write_site(folder: Path, **fields: Any) -> str:
    (folder / "site.yaml").write_text(yaml.safe_dump(fields or {"gpus_per_node": 2}))
    return str(folder / "site.yaml")


def submitted(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "out dir" / "slurm").glob("*/submitted.json")
    return json.loads(path.read_text())


def nothing_was_written(folder: Path) -> bool:
    left = folder / "out dir" / "slurm"
    return not (folder / "script").exists() and (not left.exists() or list(left.iterdir()) == [])


def refused(*words: str) -> str:
    with pytest.raises(UserError) as problems:
        main(["run.yaml", *words])
    return "\n".join(problems.value.problems)


def test_a_run_is_written_submitted_and_noted(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run.yaml", "--nodes", "2", "logging.every_steps=1", "--time", "1:00:00", "--site", write_site(desk)]) == 0
    said = capsys.readouterr().out
    facts = submitted(desk)
    assert "job 41: tiny on 2 node(s) × 2 process(es), 1:00:00 a start" in said
    for way in (f"tail -F '{facts['log']}'", "codemix jobs 'out dir'", "scancel --batch --signal=USR1 41", "scancel 41"):
        assert way in said
    assert {name: facts[name] for name in ("job", "kind", "name", "nodes", "spare", "processes", "time")} == {
        "job": "41",
        "kind": "train",
        "name": "tiny",
        "nodes": 2,
        "spare": 0,
        "processes": 2,
        "time": "1:00:00",
    }
    assert facts["log"] == str(desk / "out dir" / "slurm" / "tiny-41.log")
    (folder,) = (desk / "out dir" / "slurm").glob("submit-*")
    assert (folder / "job.sbatch").read_text() == (desk / "script").read_text()
    assert (folder / "run.yaml").read_text() == (desk / "run.yaml").read_text()
    script = (desk / "script").read_text()
    assert f"set -- '{folder}/run.yaml' logging.every_steps=1\n" in script
    for line in (f'#SBATCH --comment="codemix train {desk}/out dir"', f"#SBATCH --chdir={desk}", "#SBATCH --signal=B:USR1@300"):
        assert line in script


def test_the_job_reads_its_own_copy(desk: Path) -> None:
    main(["run.yaml"])
    write_run(desk, name="other")
    (copy,) = (desk / "out dir" / "slurm").glob("*/run.yaml")
    assert load_config(copy, RunConfig).name == "tiny"


def test_a_dry_run_prints_a_script_and_leaves_nothing(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "bin" / "sbatch").unlink()
    assert main(["run.yaml", "--nodes", "4", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""
    assert f"set -- {desk}/run.yaml\n" in script
    assert not (desk / "out dir").exists()
    main(["run.yaml", "--nodes", "4", "--dry-run"])
    assert capsys.readouterr().out == script


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--nodes", "3"], "8 windows cannot be shared by 3 data-parallel ranks"),
        (["parallel.tensor=3", "--nodes", "2"], "does not divide"),
        (["logging.every_step=1"], "did you mean 'every_steps'?"),
        (["--nodes", "0"], "--nodes 0: give 1 or more"),
        (["--spare", "-1"], "--spare -1: give 0 or more"),
        (["--time", "99h"], "--time 99h: not a time"),
        (["--time", "4:00"], "signal_seconds, 300, is not before its end"),
        (["--site", "none.yaml"], "none.yaml: no such file"),
        (["--nods", "2"], "did you mean --nodes?"),
        (["tokenizer=nowhere", "sources.code.path=gone"], "tokenizer: nowhere: no such folder"),
        (["sources.code.path=gone"], "gone/train: no manifest.json there"),
    ],
)
def test_mistakes_are_told_before_slurm_hears_of_it(desk: Path, words: list[str], line: str) -> None:
    assert line in refused(*words)
    assert nothing_was_written(desk)


def test_inputs_that_another_job_makes_need_not_be_there(desk: Path) -> None:
    assert main(["run.yaml", "sources.code.path=gone", "--after", "12:13"]) == 0
    script = (desk / "script").read_text()
    assert "#SBATCH --dependency=afterok:12:13" in script
    assert "#SBATCH --kill-on-invalid-dep=yes" in script


def test_sbatch_that_refuses_leaves_nothing_behind(desk: Path) -> None:
    stand_in(desk, "sbatch", 'echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1')
    assert refused() == "sbatch: Batch job submission failed: Invalid account; mend the site file or the options, then submit again"
    assert nothing_was_written(desk)


def test_without_slurm_there_is_one_line(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(desk / "none"))
    assert "sbatch: not on the PATH" in refused()
    assert nothing_was_written(desk)


def test_sbatch_that_does_not_answer_may_have_taken_the_job(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(desk, "sbatch", "exec sleep 60")
    monkeypatch.setattr(submission, "_SBATCH_SECONDS", 0.2)
    with pytest.raises(JobError, match="look with squeue whether the job is there"):
        main(["run.yaml"])
    assert len(list((desk / "out dir" / "slurm").glob("submit-*/job.sbatch"))) == 1


def test_sbatch_whose_answer_was_lost_may_have_taken_the_job(desk: Path) -> None:
    stand_in(desk, "sbatch", 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1')
    with pytest.raises(JobError, match="Socket timed out on send/recv operation; look with squeue whether the job is there"):
        main(["run.yaml"])
    assert len(list((desk / "out dir" / "slurm").glob("submit-*/run.yaml"))) == 1  # which the job reads


def test_what_is_asked_for_here_beats_the_variables_of_sbatch(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMELIMIT", "NO_REQUEUE", "SIGNAL", "OPEN_MODE", "JOB_NAME", "ACCOUNT", "PARTITION"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    main(["run.yaml", "--site", write_site(desk, partition="gpu")])
    names = {line.partition("=")[0] for line in (desk / "environment").read_text().splitlines()}
    assert {name for name in names if name.startswith("SBATCH_")} == {"SBATCH_ACCOUNT"}  # which the site file leaves open


def test_a_run_is_not_queued_twice(desk: Path) -> None:
    fields = ["41", "N/A", "PENDING", "Priority", "1", "tiny", "t", "t", "t", "", f"codemix train {desk}/out dir"]
    (desk / "queue").write_text("\x1f".join(fields) + "\n")
    assert "job 41 (pending) trains into it; wait for it, or cancel it: scancel 41" in refused()
    assert nothing_was_written(desk)
    (desk / "queue").write_text("\x1f".join([*fields[:2], "CANCELLED", *fields[3:]]) + "\n")
    assert main(["run.yaml"]) == 0
    assert "--dependency" not in (desk / "script").read_text()


def test_a_run_whose_job_is_just_ending_waits_for_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["40", "N/A", "COMPLETING", "None", "1", "tiny", "t", "t", "t", "n1", f"codemix train {desk}/out dir"]
    (desk / "queue").write_text("\x1f".join(fields) + "\n")
    assert main(["run.yaml", "--sbatch=--nice=5"]) == 0
    assert "begins when job 40, which trains into the same folder, has ended" in capsys.readouterr().out
    assert "#SBATCH --nice=5\n#SBATCH --dependency=afterany:40\n" in (desk / "script").read_text()


def test_a_job_inherits_nothing_of_the_job_it_was_submitted_from(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_RESTART_COUNT", "CODEMIX_CHAIN", "CODEMIX_NODE_STORAGE", "SLURM_CONF", "CODEMIX_KEPT"):
        monkeypatch.setenv(name, "1")
    main(["run.yaml"])
    names = {line.partition("=")[0] for line in (desk / "environment").read_text().splitlines()}
    assert not names & {"SLURM_CPUS_PER_TASK", "SLURM_RESTART_COUNT", "CODEMIX_CHAIN", "CODEMIX_NODE_STORAGE"}
    assert {"SLURM_CONF", "CODEMIX_KEPT"} <= names


def test_the_variables_of_a_job_are_all_known() -> None:
    texts = "".join((SCRIPTS / name).read_text() for name in ("train.sbatch", "node_entry.sh"))
    assert set(re.findall(r"\bCODEMIX_[A-Z_]+", texts)) == OF_A_JOB


def test_shards_are_brought_to_the_nodes_through_the_runs_cache(desk: Path) -> None:
    site = write_site(desk, node_storage={"folder": "/local/$SLURM_JOB_ID", "bytes": 1e9})
    main(["run.yaml", "--site", site])
    words = submitted(desk)["overrides"]
    assert "export CODEMIX_NODE_STORAGE='/local/$SLURM_JOB_ID'" in (desk / "script").read_text()
    (copy,) = (desk / "out dir" / "slurm").glob("*/run.yaml")
    path, overrides = train_words([str(copy), *words], {"CODEMIX_NODE_STORAGE": "/local/41"})
    config = load_config(path, RunConfig, overrides)
    assert str(config.sources["code"].path) == f"file://{desk}/code"
    assert config.data.cache is not None
    assert (str(config.data.cache.folder), config.data.cache.bytes) == ("/local/41", 10**9)


def test_a_run_with_a_cache_of_its_own_keeps_it(desk: Path) -> None:
    write_run(desk, data={"cache": {"folder": "/own", "bytes": 5}})
    main(["run.yaml", "--site", write_site(desk, node_storage={"folder": "/local", "bytes": 1e9})])
    assert submitted(desk)["overrides"] == []
    assert "CODEMIX_NODE_STORAGE=" not in (desk / "script").read_text().partition("\nset -uo")[0]


def test_a_source_that_cannot_be_named_in_an_override_is_refused(desk: Path) -> None:
    write_run(desk, sources={"a.b": {"path": "code"}}, stages=[{**STAGE, "mixture": {"a.b": 1.0}}])
    site = write_site(desk, node_storage={"folder": "/local", "bytes": 1e9})
    assert "sources.a.b: cannot be brought to node_storage" in refused("--site", site)


def test_logs_go_where_the_site_says(desk: Path) -> None:
    main(["run.yaml", "--site", write_site(desk, logs=str(desk / "100%j logs"))])
    assert submitted(desk)["log"] == str(desk / "100%j logs" / "tiny-41.log")
    assert (desk / "100%j logs").is_dir()


def test_every_subcommand_is_there() -> None:
    for target in SUBCOMMANDS.values():
        module, function = target.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_submitting_imports_no_torch(desk: Path) -> None:
    program = "import sys; from megatron_codemix.slurm.command import main; main(['run.yaml']); print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
