"""Whether another start follows: the rule, and what it reads of a run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix import worker
from megatron_codemix.checkpoint import on_main, ranks, step_folder
from megatron_codemix.errors import PassingError, UserError
from megatron_codemix.slurm import chain
from megatron_codemix.slurm.chain import MOST_STOPS, Ending, Fruitless, append, decide, fruitless, newest_step, read_chain
from megatron_codemix.train import marker

FAILED = Ending(finished=False, refused="", cancelled=False, stopped=False, code=1, begun_at=4, step=4)


def ending(**changes: Any) -> Ending:
    return Ending(**{**FAILED.__dict__, **changes})


def test_finished_ends_the_chain_whatever_else_happened() -> None:
    for more in ({"cancelled": True}, {"stopped": True}, {"refused": "x"}, {"code": 9}):
        verdict = decide(ending(finished=True, **more), Fruitless(), 3)
        assert (verdict.again, verdict.exit_code) == (False, 0)


@settings(max_examples=50)
@given(st.booleans(), st.text(max_size=3), st.integers(0, 255), st.integers(0, 9), st.integers(0, 9))
def test_a_cancelled_job_is_never_started_again(stopped: bool, refused: str, code: int, begun_at: int, step: int) -> None:
    one = Ending(finished=False, refused=refused, cancelled=True, stopped=stopped, code=code, begun_at=begun_at, step=step)
    assert decide(one, Fruitless(), 3).again is False
    assert decide(one, Fruitless(), 3).exit_code == 143


def test_wrong_input_is_not_tried_again_and_named() -> None:
    verdict = decide(ending(refused="run.yaml: stages: no"), Fruitless(), 3)
    assert (verdict.again, verdict.exit_code) == (False, 2)
    assert verdict.why.endswith("run.yaml: stages: no")


def test_failures_are_counted_up_to_the_cap() -> None:
    for before in range(3):
        assert decide(FAILED, Fruitless(failures=before), 3).again
    last = decide(FAILED, Fruitless(failures=3), 3)
    assert (last.again, last.exit_code) == (False, 1)
    assert "4 times in a row without a newer checkpoint" in last.why
    assert not decide(FAILED, Fruitless(), 0).again


def test_a_newer_checkpoint_begins_the_count_anew() -> None:
    assert decide(ending(step=6), Fruitless(failures=3), 3).again
    assert decide(ending(step=6), Fruitless(failures=3), 0).again


def test_srun_may_have_failed_with_code_zero() -> None:
    assert decide(ending(code=0), Fruitless(failures=3), 3).exit_code == 1


def test_given_up_is_no_request_for_another_start() -> None:
    for code in (75, 143, 2):  # as a trainer leaves that was signalled behind the shell's back, or a node whose shell failed
        verdict = decide(ending(code=code), Fruitless(failures=3), 3)
        assert (verdict.again, verdict.exit_code) == (False, 1)
        assert f"exit code {code}" in verdict.why


def test_stopped_starts_are_not_counted_as_failures() -> None:
    assert decide(ending(stopped=True), Fruitless(failures=3), 3).again
    assert decide(ending(stopped=True, step=9), Fruitless(stops=MOST_STOPS), 3).again
    endless = decide(ending(stopped=True), Fruitless(stops=MOST_STOPS), 3)
    assert not endless.again
    assert "raise the time limit" in endless.why


def lines(*starts: tuple[int, str | None]) -> list[dict[str, Any]]:
    """(step at its begin, how it ended) of each start; None: without an end line."""
    found: list[dict[str, Any]] = []
    for restart, (step, how) in enumerate(starts):
        found.append({"kind": "begin", "restart": restart, "step": step})
        found += [{"kind": "end", "restart": restart, "how": how}] if how else []
    return found


def test_only_starts_in_a_row_without_progress_count() -> None:
    assert fruitless([], 0) == Fruitless()
    assert fruitless(lines((0, "failed"), (0, "failed")), 0) == Fruitless(failures=2)
    assert fruitless(lines((0, "failed"), (0, "failed")), 2) == Fruitless(failures=0)
    assert fruitless(lines((0, "failed"), (2, "failed"), (2, "stopped"), (2, "failed")), 2) == Fruitless(failures=2, stops=1)
    # a node was lost in between: counts as nothing, and does not hide those before it
    assert fruitless(lines((2, "failed"), (2, None), (2, "failed")), 2) == Fruitless(failures=2)
    assert fruitless(lines((2, "failed"), (2, None), (4, "failed")), 4) == Fruitless(failures=1)


def test_what_an_earlier_job_of_the_same_id_did_does_not_count() -> None:
    both = [{**line, "job": "7", "chain": "7"} for line in [*lines((0, "failed"), (0, "failed")), *lines((0, "failed"))]]
    assert fruitless(both, 0) == Fruitless(failures=1)
    assert fruitless(both[:4], 0) == Fruitless(failures=2)


def test_the_end_of_a_start_that_was_taken_for_lost_is_not_anothers() -> None:
    late = [*lines((2, None), (2, None)), {"kind": "end", "restart": 0, "how": "failed"}]
    assert fruitless(late, 2) == Fruitless()


def test_a_start_that_was_taken_for_lost_ends_without_another_word() -> None:
    for more in ({"finished": True}, {"stopped": True}, {}):
        verdict = decide(ending(superseded=True, **more), Fruitless(), 3)
        assert (verdict.again, verdict.exit_code) == (False, 1)


def test_the_chain_survives_torn_and_foreign_lines(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    path = tmp_path / "slurm" / chain.CHAIN_NAME
    path.write_text('{"kind": "begin", "chain": "7", "step": 0}\nnonsense\n[1]\n{"kind": "begin", "chain": "8"}\n{"kind": "e')
    append(tmp_path, {"kind": "end", "chain": "7", "how": "failed"})
    assert [line["kind"] for line in read_chain(tmp_path, "7")] == ["begin", "end"]
    assert read_chain(tmp_path / "none", "7") == []


def test_the_newest_checkpoint_is_found_by_its_name(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for step in (2, 123456789):
        step_folder(tmp_path, step).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000900.1-2.tmp").mkdir()
    assert newest_step(tmp_path) == 123456789


def test_names_are_those_of_the_trainer() -> None:
    assert chain.FINISHED_NAME == marker.FINISHED_NAME


def ask(run: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    given = {"run": run, "job": 7, "restart": 0, "chain": 7, "code": 1, "stopped": 0, "cancelled": 0, "max-restarts": 1, **changes}
    words = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-P", "-m", "megatron_codemix.slurm.chain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def begin(run: Path, restart: int) -> None:
    append(run, {"kind": "begin", "chain": "7", "job": "7", "restart": restart, "step": 0})


def test_what_the_batch_shell_is_told(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    begin(tmp_path, 0)
    first = ask(tmp_path)
    assert (first.returncode, first.stderr) == (75, "")
    assert "starts again (restart 1 of 1 without a newer checkpoint)" in first.stdout
    begin(tmp_path, 1)
    assert ask(tmp_path, restart=1).returncode == 1  # the cap
    begin(tmp_path, 2)
    step_folder(tmp_path, 2).mkdir(parents=True)
    assert ask(tmp_path, restart=2).returncode == 75  # a newer checkpoint
    begin(tmp_path, 3)
    chain.refused_file(tmp_path, "7", 3).write_text("run.yaml: a\nrun.yaml: b\n")
    refused = ask(tmp_path, restart=3)
    assert (refused.returncode, refused.stdout.strip()[-23:]) == (2, "run.yaml: a run.yaml: b")
    begin(tmp_path, 4)
    assert ask(tmp_path, restart=3).stdout.startswith("another start of this job has taken over")
    assert ask(tmp_path, restart=4, refused="n3: no GPU").stdout.endswith("n3: no GPU\n")
    (tmp_path / "finished.json").write_text("{}")
    done = ask(tmp_path, restart=4, cancelled=1)
    assert (done.returncode, done.stdout) == (0, "finished\n")
    ends = [line for line in read_chain(tmp_path, "7") if line["kind"] == "end"]
    assert [line["how"] for line in ends] == ["failed", "failed", "failed", "refused", "superseded", "refused", "finished"]
    assert [line["again"] for line in ends] == [True, False, True] + [False] * 4


def test_a_full_disk_does_not_hide_the_verdict(tmp_path: Path) -> None:
    done = ask(tmp_path / "none")
    assert done.returncode == 75
    assert "cannot be written" in done.stderr


def test_the_verdict_needs_neither_torch_nor_the_configs() -> None:
    program = "import sys, megatron_codemix.slurm.chain; print(*sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("kind", ["user", "job", "passing"])
def test_wrong_input_alone_is_noted_as_refused(tmp_path: Path, kind: str) -> None:
    path = chain.refused_file(tmp_path, "7", 0)
    path.parent.mkdir()
    raised = {"user": "UserError('a: wrong', 'b: wrong')", "job": "JobError('full')", "passing": "PassingError('held')"}[kind]
    program = f"from megatron_codemix import worker; from megatron_codemix.errors import *; worker.record({raised})"
    environment = {**os.environ, worker.REFUSED_FILE: str(path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert [one.name for one in path.parent.iterdir()] == ([path.name] if kind == "user" else [])
    if kind == "user":
        assert path.read_text() == "a: wrong\nb: wrong\n"


def test_what_may_pass_is_so_on_every_rank() -> None:
    class Other:
        """Rank 1, which hears of the main process's error."""

        rank, world_size, is_main = 1, 2, False

        def broadcast(self, value: Any) -> Any:
            return None, told

        def gather(self, value: Any) -> list[Any]:
            return [None, value]

        def any_of(self, *flags: bool) -> tuple[bool, ...]:
            return flags

    for error in (PassingError("held"), UserError("wrong")):
        told = ranks._told(error)
        with pytest.raises(UserError) as caught:
            on_main(Other(), lambda: None)
        assert type(caught.value) is type(error)


def test_the_lines_of_a_chain_are_json_with_a_time(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    append(tmp_path, {"kind": "begin", "chain": "1", "nodes": "n[1-2]"})
    (line,) = (tmp_path / "slurm" / chain.CHAIN_NAME).read_text().splitlines()
    assert json.loads(line)["time"] > 1.7e9
