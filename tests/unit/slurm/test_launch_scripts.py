"""The batch scripts: clean for shellcheck, and what train.sbatch does when Slurm's programs answer this or that. Stand-ins answer here;
tests/slurm asks a real Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from megatron_codemix.slurm.chain import read_chain
from megatron_codemix.slurm.script import SCRIPTS, render
from megatron_codemix.slurm.site import SiteConfig

SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
SECONDS = 60.0

RUN = {
    "name": "tiny",
    "tokenizer": "tokenizer",
    "sources": {"code": {"path": "code"}},
    "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128},
    "stages": [
        {
            "name": "main",
            "tokens": 64 * 8,
            "mixture": {"code": 1.0},
            "batch_size": 8,
            "sequence_length": 64,
            "learning_rate": {"shape": "constant", "peak": 1e-3},
        }
    ],
}

# What each stand-in does besides noting how it was called. STAND_IN_SRUN: lines of bash for srun.
STAND_INS = {
    "scontrol": 'case "$1" in show) if [ "$2" = hostnames ]; then printf "n1\\nn2\\n"; else echo "JobId=7 ExcNodeList=(null)"; fi ;; '
    "requeue) kill -TERM $PPID ;; esac",
    "squeue": 'if [ -e "$STAND_INS/away" ]; then rm "$STAND_INS/away"; echo "error: Unable to contact slurm controller" >&2; '
    'exit 1; fi; cat "$STAND_INS/state"',
    "srun": 'env | grep "^CODEMIX_\\|^SRUN\\|^SLURM_EXPORT" | sort > "$STAND_INS/environment"; eval "$STAND_IN_SRUN"',
    "sleep": "exec /bin/sleep 0.05",
}


def scripts() -> list[Path]:
    return sorted(path for path in SCRIPTS.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck: pip install -r requirements-dev.txt")
@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    done = subprocess.run([str(SHELLCHECK), "--shell=bash", str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_each_says_how_to_use_it(path: Path) -> None:
    head = path.read_text().split("\nset -")[0].splitlines()
    assert head[0] == "#!/usr/bin/env bash"
    assert all(line.startswith("#") or not line for line in head)
    assert len(head) > 1


@pytest.mark.parametrize("path", [path for path in scripts() if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_srun_is_told_what_sbatch_was_told(path: Path) -> None:
    told = path.read_text().partition("srun --n")[0]
    assert "SLURM_EXPORT_ENV=ALL" in told  # else nothing of the job's environment after `sbatch --export=NONE`
    assert "SRUN_CPUS_PER_TASK=" in told


class Desk:
    """train.sbatch in a shell of this machine, with stand-ins in front of the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run dir"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, what in STAND_INS.items():
            program = self.bin / name
            program.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> "$STAND_INS/calls"\n{what}\n')
            program.chmod(0o755)
        (folder / "state").write_text("RUNNING 0\n")
        self.file = folder / "run.yaml"
        self.file.write_text(yaml.safe_dump({**RUN, "output": str(self.run)}))

    def start(self, srun: str, *, restart: int = 0, arguments: tuple[str, ...] = (), **more: str) -> subprocess.Popen[str]:
        """Begin a start of job 7 on two nodes; srun: what it does, in bash."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "4"}
        slurm |= {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CODEMIX"))}
        ours = {"PATH": f"{self.bin}:{os.environ['PATH']}", "STAND_INS": str(self.folder), "STAND_IN_SRUN": srun, "RUN": str(self.run)}
        environment: Mapping[str, str] = {**kept, **slurm, **ours, "CODEMIX_PYTHON": sys.executable, **more}
        command = ["bash", str(SCRIPTS / "train.sbatch"), str(self.file), *arguments]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder)

    def whole(self, srun: str, *, code: int, **more: str | int) -> str:
        """A start to its end; returns what it wrote."""
        process = self.start(srun, **more)  # pyright: ignore[reportArgumentType]
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == code, said
        return said

    def calls(self, program: str) -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == program]

    @property
    def requeued(self) -> bool:
        return "requeue 7" in self.calls("scontrol")

    def wait_for(self, path: Path, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + SECONDS
        while not path.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, f"{path} has not come"
            time.sleep(0.02)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


FINISH = 'echo "{}" > "$RUN/finished.json"'


def test_a_run_that_finishes_ends_the_chain(desk: Desk) -> None:
    said = desk.whole(f"{FINISH}; exit 1", code=0, arguments=("logging.every_steps=1",))  # whatever srun's exit code
    assert said.rstrip().endswith("finished")
    assert not desk.requeued
    (call,) = desk.calls("srun")
    for option in ("--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2", "--kill-on-bad-exit=1"):
        assert option in call.split()
    assert call.endswith(f"/node_entry.sh {desk.file} logging.every_steps=1")
    told = dict(line.split("=", 1) for line in (desk.folder / "environment").read_text().splitlines())
    assert told["CODEMIX_STOP_FILE"] == str(desk.run / "slurm" / "stop.7.0")
    assert told["CODEMIX_REFUSED_FILE"] == str(desk.run / "slurm" / "refused.7.0")
    assert (told["CODEMIX_MASTER"], told["CODEMIX_NODES"], told["CODEMIX_PROCESSES"]) == ("n1", "2", "1")
    assert (told["SRUN_CPUS_PER_TASK"], told["SLURM_EXPORT_ENV"]) == ("4", "ALL")
    assert 12000 <= int(told["CODEMIX_PORT"]) < 32000


def test_starts_of_a_job_meet_at_other_ports(desk: Desk) -> None:
    ports = set()
    for restart in range(2):
        desk.whole(FINISH, code=0, restart=restart)
        ports |= {line for line in (desk.folder / "environment").read_text().splitlines() if line.startswith("CODEMIX_PORT=")}
    assert len(ports) == 2


def test_a_failure_is_followed_by_another_start_until_the_cap(desk: Desk) -> None:
    said = desk.whole("exit 9", code=75, CODEMIX_MAX_RESTARTS="1")
    assert "failed (exit code 9); there is no checkpoint yet; starts again (restart 1 of 1" in said
    assert desk.requeued
    (desk.folder / "calls").unlink()
    (desk.folder / "state").write_text("RUNNING 1\n")
    said = desk.whole("exit 9", code=9, restart=1, CODEMIX_MAX_RESTARTS="1")
    assert "given up" in said
    assert not desk.requeued
    ends = [line for line in read_chain(desk.run, "7") if line["kind"] == "end"]
    assert [(line["restart"], line["again"]) for line in ends] == [(0, True), (1, False)]


def test_before_the_time_limit_training_is_asked_to_save_and_another_start_follows(desk: Desk) -> None:
    # as the trainer: looks for the file, saves, leaves
    wait = 'touch "$RUN/trains"; while [ ! -e "$CODEMIX_STOP_FILE" ]; do sleep 1; done; mkdir -p "$RUN/checkpoints/step-00000004"; exit 75'
    process = desk.start(wait)
    desk.wait_for(desk.run / "trains", process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, said
    assert "stopped in time; the newest checkpoint is that of step 4; starts again" in said
    assert desk.requeued


def test_a_cancelled_job_saves_and_stays_cancelled(desk: Desk) -> None:
    wait = 'touch "$RUN/trains"; while [ ! -e "$CODEMIX_STOP_FILE" ]; do sleep 1; done; exit 75'
    process = desk.start(wait)
    desk.wait_for(desk.run / "trains", process)
    (desk.folder / "state").write_text("COMPLETING 0\n")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, said
    assert not desk.requeued


def test_a_job_that_was_cancelled_behind_our_back_stays_cancelled(desk: Desk) -> None:
    (desk.folder / "state").write_text("COMPLETING 0\n")
    said = desk.whole("exit 1", code=143)
    assert "not started again: Slurm has ended this job meanwhile" in said
    assert not desk.requeued


def test_a_start_that_slurm_has_replaced_does_not_end_its_successor(desk: Desk) -> None:
    (desk.folder / "state").write_text("RUNNING 1\n")  # the job runs, but it is the next start that does
    desk.whole("exit 1", code=143)
    assert not desk.requeued


def test_a_controller_that_is_away_for_a_moment_does_not_end_the_chain(desk: Desk) -> None:
    (desk.folder / "away").touch()
    desk.whole("exit 1", code=75)
    assert desk.requeued


def test_a_python_that_cannot_be_started_for_a_moment_does_not_end_the_chain(desk: Desk) -> None:
    python = desk.bin / "python-of-nfs"
    times = f"echo x >> {desk.folder}/asked; [ $(wc -l < {desk.folder}/asked) -gt 1 ] || exit 126"  # once, for `begin`
    python.write_text(f'#!/bin/bash\n{times}\necho "a container says hello"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    said = desk.whole(f"{FINISH}; rm {desk.folder}/asked", code=0, CODEMIX_PYTHON=str(python))  # and once for `chain`
    assert "exit code 126" in said
    assert said.rstrip().endswith("finished")


def test_wrong_input_ends_the_chain_before_and_after_it_starts(desk: Desk) -> None:
    said = desk.whole("exit 1", code=2, arguments=("logging.every_step=1",))
    assert "did you mean 'every_steps'?" in said
    assert desk.calls("srun") == []
    said = desk.whole('echo "run.yaml: no" > "$CODEMIX_REFUSED_FILE"; exit 2', code=2)
    assert "run.yaml: no" in said
    assert not desk.requeued


def test_a_batch_that_does_not_come_out_even_is_refused_by_the_job(desk: Desk) -> None:
    said = desk.whole("exit 1", code=2, CODEMIX_PROCESSES="3")
    assert "8 windows cannot be shared by 6 data-parallel ranks" in said


def test_an_old_marker_does_not_end_the_chain(desk: Desk) -> None:
    desk.run.mkdir()
    (desk.run / "finished.json").write_text("{}")
    desk.whole("exit 1", code=75)
    assert desk.requeued


def test_what_an_earlier_job_of_the_same_id_left_does_not_end_this_one(desk: Desk) -> None:
    (desk.run / "slurm").mkdir(parents=True)
    for left in ("stop.7.0", "refused.7.0"):
        (desk.run / "slurm" / left).write_text("run.yaml: no")
    said = desk.whole('[ ! -e "$CODEMIX_STOP_FILE" ] || exit 75; exit 9', code=75)
    assert "failed (exit code 9)" in said
    assert desk.requeued


def test_node_entry_starts_torchrun_once_a_node(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$OMP_NUM_THREADS" "$@"\n')
    python.chmod(0o755)
    told = {
        "CODEMIX_PYTHON": str(python),
        "CODEMIX_CONTAINER": "env 'A=b c'",
        "CODEMIX_MASTER": "n1",
        "CODEMIX_PORT": "12345",
        "CODEMIX_NODES": "2",
        "CODEMIX_PROCESSES": "4",
        "CODEMIX_RENDEZVOUS": "7.0",
        "CODEMIX_NODE_STORAGE": f"{tmp_path}/local/$SLURM_JOB_ID",
        "SLURM_PROCID": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "10",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(["bash", SCRIPTS / "node_entry.sh", "a b.yaml", "x=1"], env=told, capture_output=True, text=True, check=True)
    threads, *words = done.stdout.split("\0")[:-1]
    assert threads == "2"
    assert words[:3] == ["-P", "-m", "torch.distributed.run"]
    for option in ("--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=n1:12345", "--rdzv-id=7.0", "--rdzv-conf=is_host=0"):
        assert option in words
    assert words[-4:] == ["train", "a b.yaml", "x=1", f"data.cache.folder={tmp_path}/local/7"]
    assert (tmp_path / "local" / "7").is_dir()
    # where tasks are numbered otherwise than nodes are named, the name decides
    for name, serves in (("n1", 1), ("n2", 0)):
        told["SLURMD_NODENAME"] = name
        done = subprocess.run(["bash", SCRIPTS / "node_entry.sh", "a.yaml"], env=told, capture_output=True, text=True, check=True)
        assert f"--rdzv-conf=is_host={serves}" in done.stdout.split("\0")


def test_the_written_script_is_the_one_by_hand(desk: Desk) -> None:
    text = render("train.sbatch", options={}, site=SiteConfig(), variables={"CODEMIX_NODES": 2}, arguments=[str(desk.file), "x=1"])
    assert text.splitlines()[0] == "#!/usr/bin/env bash"
    assert f"set -- {desk.file} x=1" in text.replace("'", "")
