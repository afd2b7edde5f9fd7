"""What train.sbatch does with each answer of a preflight. Stand-ins are Slurm and the preflight; tests/slurm asks the real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_codemix.slurm.chain import read_chain
from megatron_codemix.slurm.script import SCRIPTS

_STAGE = {
    "name": "main",
    "tokens": 64 * 8,
    "mixture": {"code": 1.0},
    "batch_size": 8,
    "sequence_length": 64,
    "learning_rate": {"shape": "constant", "peak": 1e-3},
}
_RUN = {
    "name": "tiny",
    "tokenizer": "tokenizer",
    "sources": {"code": {"path": "code"}},
    "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128},
    "stages": [_STAGE],
}
_STAND_INS = {
    # a requeue ends the batch shell at once, as Slurm's does
    "scontrol": 'case "$1 $2" in "show hostnames") printf "n1\\nn2\\nn3\\n" ;; '
    '"--oneliner show") echo "JobId=7 ExcNodeList=$KNOWN Nice=0" ;; requeue*) kill -TERM $PPID ;; update*) exit $UPDATE ;; esac',
    "squeue": 'echo "RUNNING 0"',
    "srun": 'echo "{}" > "$RUN/finished.json"',
    "sleep": "exec /bin/sleep 0.05",
    "python": 'case "$*" in *slurm.preflight*) printf "$ANSWER"; exit $CODE ;; esac; exec "$REAL" "$@"',
}


def _start(folder: Path, answer: str, code: int, *, known: str = "(null)", update: int = 0, preflight: str | None = "{}"):
    """One start of job 7 on n1, n2 and n3, of which two are needed; returns its exit code, what it said, and what it called."""
    programs = folder / "bin"
    programs.mkdir()
    for name, what in _STAND_INS.items():
        (programs / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> "$CALLS"\n{what}\n')
        (programs / name).chmod(0o755)
    (folder / "run.yaml").write_text(yaml.safe_dump({**_RUN, "output": str(folder / "run")}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CODEMIX"))}
    environment = {
        **kept,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "CODEMIX_NODES": "2",
        "CODEMIX_PYTHON": str(programs / "python"),
        **({"CODEMIX_PREFLIGHT": preflight} if preflight is not None else {}),
        "PATH": f"{programs}:{kept['PATH']}",
        "CALLS": str(folder / "calls"),
        "RUN": str(folder / "run"),
        "REAL": sys.executable,
        "ANSWER": answer,
        "CODE": str(code),
        "KNOWN": known,
        "UPDATE": str(update),
    }
    command = ["bash", str(SCRIPTS / "train.sbatch"), str(folder / "run.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=120)
    return done.returncode, done.stdout + done.stderr, (folder / "calls").read_text().splitlines()


def _named(calls: list[str], *beginnings: str) -> list[str]:
    return [line for line in calls if line.startswith(beginnings)]


def test_training_starts_on_the_nodes_that_were_chosen(tmp_path: Path) -> None:
    code, _, calls = _start(tmp_path, "n1\\nn3\\n", 0)
    assert code == 0
    (asked,) = [line for line in calls if "slurm.preflight" in line]
    assert "--nodes n1,n2,n3 --need 2" in asked and f"--out {tmp_path}/run/slurm/preflight.7.0" in asked
    (trained,) = _named(calls, "srun")
    assert "--nodes=2" in trained and "--nodelist=n1,n3" in trained


def test_without_a_preflight_nothing_is_asked(tmp_path: Path) -> None:
    code, _, calls = _start(tmp_path, "", 1, preflight=None)
    assert code == 0
    assert not [line for line in calls if "slurm.preflight" in line]


def test_a_preflight_that_fails_itself_does_not_keep_a_run_from_training(tmp_path: Path) -> None:
    code, said, calls = _start(tmp_path, "", 2)
    assert code == 0 and "the preflight itself failed: training begins without it" in said
    assert "--nodelist=n1,n2" in _named(calls, "srun")[0]


@pytest.mark.parametrize(("known", "list_"), [("(null)", "n2,n3"), ("n9,n[4-5]", "n9,n[4-5],n2,n3")])
def test_too_few_good_nodes_are_excluded_from_the_next_start(tmp_path: Path, known: str, list_: str) -> None:
    code, said, calls = _start(tmp_path, "n2\\nn3\\n", 1, known=known)
    assert code == 75
    assert not _named(calls, "srun")
    done = _named(calls, "scontrol requeue", "scontrol update")
    assert done == ["scontrol requeue 7", f"scontrol update JobId=7 ExcNodeList={list_}"], "in this order: Slurm refuses the other one"
    assert f"the next start goes without {list_}" in said
    assert [line["how"] for line in read_chain(tmp_path / "run", "7") if line["kind"] == "end"] == ["failed"]


def test_that_slurm_does_not_exclude_is_said(tmp_path: Path) -> None:
    code, said, calls = _start(tmp_path, "n2\\n", 1, update=1)
    assert code == 75 and "Slurm does not exclude n2: the next start may be given the same nodes" in said
    assert _named(calls, "scontrol requeue")


def test_a_fault_of_all_nodes_ends_the_chain_with_its_line(tmp_path: Path) -> None:
    code, said, calls = _start(tmp_path, "disk run: /run: 0.1 GiB free, 10 asked for\\n", 3)
    assert code == 2
    assert "not started again, since it would end as it did: disk run: /run: 0.1 GiB free, 10 asked for" in said
    assert not _named(calls, "srun", "scontrol requeue", "scontrol update")
    (end,) = [line for line in read_chain(tmp_path / "run", "7") if line["kind"] == "end"]
    assert end["how"] == "refused"
