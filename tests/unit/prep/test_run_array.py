"""launch_scripts/prep_array.sh with an `sbatch` and `srun` of our own, which do at once what Slurm would do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_codemix.cli import main

_SCRIPT = Path(__file__).resolve().parents[3] / "launch_scripts" / "prep_array.sh"
_SBATCH = """#!/usr/bin/env bash
# runs a script at once, once for each number of its array; says which job it would have been
array=0-0 number=$(($(cat "$JOBS" 2>/dev/null || echo 100) + 1))
echo $number > "$JOBS"
while [[ $1 == --* ]]; do
    case $1 in
        --array=*) array=${1#--array=} ;;
        --dependency=afterok:*) [ "${1#--dependency=afterok:}" = $((number - 1)) ] || exit 9 ;;
    esac
    echo "$number $1" >> "$JOBS.log"
    shift
done
for task in $(seq "${array%-*}" "${array#*-}"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash "$@" >&2 || exit 1
done
echo "$number;cluster"
"""
_SRUN = """#!/usr/bin/env bash
shift
exec "$@"
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_all_stages_as_jobs_that_wait_for_each_other(ready: Path, prep_file: Callable[..., Path]) -> None:
    path = prep_file(ready, deduplicate={"exact": True})
    shutil.rmtree(ready / "out" / "tokenizer")
    assert main(["prep", "run", str(path)]) == 0
    whole = tree(ready / "out")
    shutil.rmtree(ready / "out")
    programs = ready / "bin"
    programs.mkdir()
    for name, content in (("sbatch", _SBATCH), ("srun", _SRUN)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "JOBS": str(ready / "jobs"),
        "LOGS": str(ready / "logs"),
    }
    done = subprocess.run(["bash", str(_SCRIPT), str(path), "2", "--partition=cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["105"]
    assert tree(ready / "out") == whole
    log = (ready / "jobs.log").read_text()
    assert log.count("--kill-on-invalid-dep=yes") == 4
    assert log.count("--array=0-1") == 2
    assert log.count("--partition=cpu") == 5


@pytest.mark.parametrize("arguments", [[], ["prep.yaml"], ["prep.yaml", "0"], ["missing.yaml", "3"]])
def test_array_script_refuses_what_it_cannot_do(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(["bash", str(_SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
