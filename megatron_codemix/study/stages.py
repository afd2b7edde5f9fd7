"""What is done to one arm, in order: train, audit, convert, evaluate. Each is a `codemix` command.

A stage is done when its output is there and its record (STUDY/arms/ARM/stages.json) carries the key
of everything it was made from; otherwise it runs again. Keys chain: another checkpoint means another
conversion, another conversion another evaluation.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_codemix import worker
from megatron_codemix.checkpoint import newest
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_file, sha256_json, write_json
from megatron_codemix.study.plan import Arm, StudyPlan, begin_arm

STAGES = ("train", "audit", "convert", "eval")
_CODEMIX = tuple(worker.codemix_command())


@dataclass(frozen=True)
class Stage:
    """One command of one arm."""

    arm: Arm
    name: str
    log: Path
    """Receives the command's stdout and stderr."""
    prepare: Callable[[], list[str]]
    """Makes what the command needs, clears what is stale, and returns the command."""
    key: Callable[[], str]
    """What the output depends on; callable once the stages before are done."""
    output_exists: Callable[[], bool]
    processes: int = 1
    """Processes the command works with, side by side."""

    def is_done(self) -> bool:
        """True when the output is there and was made from what the plan says."""
        record = read_records(self.log.parent).get(self.name, {})
        return record.get("returncode") == 0 and self.output_exists() and record.get("key") == self.key()

    def record(self, returncode: int, seconds: float, cpu_seconds: float, peak_bytes: int, environment: dict[str, str]) -> None:
        """Note an attempt: exit code, wall and processor time of all attempts so far, peak resident memory."""
        records = read_records(self.log.parent)
        before = records.get(self.name, {})
        # An attempt that follows a success is a new beginning: what it makes replaces what was there.
        earlier = before if before.get("returncode") != 0 else {}
        records[self.name] = {
            "returncode": returncode,
            "key": self.key() if returncode == 0 else None,
            "seconds": round(seconds + earlier.get("seconds", 0.0), 3),
            "cpu_seconds": round(cpu_seconds + earlier.get("cpu_seconds", 0.0), 3),
            "attempts": earlier.get("attempts", 0) + 1,
            "peak_bytes": max(peak_bytes, earlier.get("peak_bytes", 0)),
            "environment": environment,
        }
        write_json(self.log.parent / "stages.json", records)


def read_records(arm_folder: Path) -> dict[str, dict[str, Any]]:
    """Stage → its record; empty for an arm that has not begun."""
    path = arm_folder / "stages.json"
    return read_json(path, "record of stages") if path.exists() else {}


def trained_steps(plan: StudyPlan, arm: Arm) -> int:
    """Optimizer updates that the newest checkpoint of an arm holds; 0 without one."""
    checkpoint = newest(plan.run_folder(arm), contents=False)
    return checkpoint.step if checkpoint else 0


def final_checkpoint(plan: StudyPlan, arm: Arm) -> Path | None:
    """The checkpoint of an arm's last step, or None while it is not trained to the end."""
    checkpoint = newest(plan.run_folder(arm), contents=False)
    return checkpoint.folder if checkpoint and checkpoint.step == arm.schedule["steps"] else None


def stages_of(plan: StudyPlan, arm: Arm) -> list[Stage]:
    """The stages of one arm, in the order they must run."""
    run, folder = plan.run_folder(arm), plan.arm_folder(arm)
    hugging_face, results = run / "hf", run / "eval"

    def trained() -> Path:
        checkpoint = final_checkpoint(plan, arm)
        assert checkpoint is not None, f"{arm.name} is used before it is trained"
        return checkpoint

    def train() -> list[str]:
        return _train_command(arm, begin_arm(plan, arm))

    def checkpoint_key() -> str:
        return sha256_json([arm.hash, sha256_file(trained() / "checkpoint.json")])

    def convert() -> list[str]:
        shutil.rmtree(hugging_face, ignore_errors=True)
        return [*_CODEMIX, "convert", "to-hf", str(trained()), str(hugging_face)]

    def evaluation_key() -> str:
        return sha256_json([checkpoint_key(), {path: sha256_file(Path(path)) for path in evaluation_files(plan)}, plan.evaluation])

    def evaluate() -> list[str]:
        # results of an earlier model or of other documents: `codemix eval` knows them by their fingerprints
        return [*_CODEMIX, "eval", str(hugging_face), "--output", str(results), *_evaluation_options(plan)]

    def stage(name: str, prepare: Callable[[], list[str]], key: Callable[[], str], exists: Callable[[], bool]) -> Stage:
        return Stage(arm, name, folder / f"{name}.log", prepare, key, exists, arm.processes if name == "train" else 1)

    stages = [
        stage("train", train, lambda: arm.hash, lambda: final_checkpoint(plan, arm) is not None),
        stage("audit", lambda: [*_CODEMIX, "audit", str(run)], checkpoint_key, lambda: True),
        stage("convert", convert, checkpoint_key, (hugging_face / "codemix.json").exists),
    ]
    if evaluation_files(plan):
        stages.append(stage("eval", evaluate, evaluation_key, (results / "results.json").exists))
    return stages


def evaluation_files(plan: StudyPlan) -> list[str]:
    """Paths of everything the evaluation reads besides the model: documents, the task file and the tasks' data."""
    files = list(plan.evaluation.get("bits_per_byte", {}).values())
    tasks = plan.evaluation.get("tasks")
    return [*files, tasks, *_data_of(Path(tasks))] if tasks else files


def evaluation_data(plan: StudyPlan) -> list[str]:
    """Those of `evaluation_files` that hold documents or items."""
    return [path for path in evaluation_files(plan) if path != plan.evaluation.get("tasks")]


def _data_of(path: Path) -> list[str]:
    """The `data` of every task of a task file; its other mistakes are `codemix eval`'s to tell."""
    try:
        tasks = yaml.safe_load(path.read_text("utf-8"))["tasks"].values()
        return [str(task["data"]) for task in tasks]
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: is not a file of tasks, each with 'kind' and 'data'; see docs/evaluation.md") from None


def check_evaluation_files(plan: StudyPlan) -> None:
    """Raise UserError for evaluation files that do not exist, before anything is trained."""
    missing = [path for path in evaluation_files(plan) if not Path(path).is_file()]
    if missing:
        raise UserError(*(f"{path}: no such file to evaluate on; prep writes SOURCE/valid/documents.jsonl.gz" for path in missing))


def _train_command(arm: Arm, run_file: Path) -> list[str]:
    """`codemix train`, with as many local processes as the arm's layout takes."""
    processes = [] if arm.processes == 1 else ["--nproc", str(arm.processes)]
    return [*_CODEMIX, "train", str(run_file), *processes]


def _evaluation_options(plan: StudyPlan) -> list[str]:
    options = []
    for domain, path in plan.evaluation.get("bits_per_byte", {}).items():
        options += ["--bits-per-byte", f"{domain}={path}"]
    if plan.evaluation.get("tasks"):
        options += ["--tasks", plan.evaluation["tasks"]]
    return options
