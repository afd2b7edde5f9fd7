"""Guards where steps, checkpoints, stages and branches meet: first and last step, damaged checkpoints, branches, both engines' counts."""

import importlib.util
import os
import signal
from collections.abc import Callable, Iterable

import pytest
import torch
import yaml

from megatron_codemix.batches import Loader
from megatron_codemix.checkpoint import Checkpoint, step_folder, step_folders
from megatron_codemix.cli import main
from megatron_codemix.engine.chunks import Replicas
from megatron_codemix.train import read_log
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.run import Run

STEPS = 12
NAN = float("nan")


@pytest.fixture
def fault(monkeypatch) -> Callable[[Iterable[int]], None]:
    """fault(steps): the batches of these steps (0-based) have a loss that is no number, under either engine."""

    def install(steps: Iterable[int]) -> None:
        faulty, batches = set(steps), Loader.batches

        def spoilt(self, step):
            made = batches(self, step)
            if step in faulty:
                for batch in made:
                    batch.loss_weights = torch.full_like(batch.loss_weights, NAN)
            return made

        monkeypatch.setattr(Loader, "batches", spoilt)

    return install


def rewritten(run_file, **sections) -> None:
    run_file.write_text(yaml.safe_dump({**yaml.safe_load(run_file.read_text()), **sections}))


def skipped(run_folder) -> list[tuple[int, int]]:
    return [(entry["first"], entry["end"]) for entry in Checkpoint.open(run_folder).lineage()["skipped"]]


def trained_steps(run_folder) -> list[int]:
    return [line["step"] - 1 for line in read_log(run_folder) if line["kind"] == "step"]


NO_ZERO = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")


@pytest.mark.parametrize("overrides", [(), pytest.param(("engine=deepspeed",), marks=NO_ZERO)])
def test_first_last_and_due_steps_are_left_out(run_file, fault, overrides, tiny):
    """Checkpoints are due after 3, 6, 9, 12; validation after 5, 10, 12; the second stage begins at 8."""
    rewritten(run_file, guards={"non_finite": "skip"})
    faulty = [0, 2, 4, 8, 11]
    fault(faulty)
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file, *overrides) == 0
    assert trained_steps(run_folder) == [step for step in range(STEPS) if step not in faulty]
    assert skipped(run_folder) == [(step, step + 1) for step in faulty]
    assert {line["step"] for line in read_log(run_folder) if line["kind"] == "validation"} == {5, 10, 12}
    assert Checkpoint.open(run_folder).step == STEPS
    assert main(["audit", str(run_folder)]) == 0


def test_every_step_left_out(run_file, fault, tiny):
    rewritten(run_file, guards={"non_finite": "skip"})
    fault(range(STEPS))
    assert tiny.train(run_file) == 0
    assert main(["audit", str(run_file.parent / "run")]) == 0


def test_fault_right_behind_the_only_checkpoint(run_file, fault, tiny):
    rewritten(run_file, guards={"non_finite": "rewind", "skip_before": 100, "skip_after": 100})
    fault([3])
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    assert skipped(run_folder) == [(3, 12)]
    assert trained_steps(run_folder) == [0, 1, 2]
    assert main(["audit", str(run_folder)]) == 0


def test_last_step_rewinds(run_file, fault, tiny):
    rewritten(run_file, guards={"non_finite": "rewind", "skip_before": 0, "skip_after": 5})
    fault([11])
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    assert skipped(run_folder) == [(11, 12)]
    assert main(["audit", str(run_folder)]) == 0


@pytest.mark.parametrize(("before", "damaged", "first", "base"), [(100, 3, 6, 6), (1, 9, 9, 6), (100, None, 3, 3)])
def test_what_is_gone_back_to_is_whole(run_file, fault, tiny, monkeypatch, before, damaged, first, base):
    """A damaged checkpoint is passed over before others are given up for it: else none might be left."""
    rewritten(run_file, guards={"non_finite": "rewind", "skip_before": before, "skip_after": 1}, checkpoint={"every_steps": 3, "keep": 9})
    run_folder, settle, went = run_file.parent / "run", Run.settle, []

    def settle_and_damage(self):
        outcome = settle(self)
        if self.engine.step == 11 and self.guard.verdict.action == "rewind" and damaged:
            path = max(step_folder(run_folder, damaged).rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        return outcome

    went_back = Recorder.went_back
    monkeypatch.setattr(Run, "settle", settle_and_damage)
    monkeypatch.setattr(Recorder, "went_back", lambda self, step, *rest: went.append(step) or went_back(self, step, *rest))
    fault([10])
    assert tiny.train(run_file) == 0
    assert went == [base]
    assert skipped(run_folder) == [(first, 11)]
    assert main(["audit", str(run_folder)]) == 0


def test_where_every_checkpoint_is_damaged_none_is_given_up(run_file, fault, tiny, monkeypatch, capsys):
    rewritten(run_file, guards={"non_finite": "rewind"}, checkpoint={"every_steps": 3, "keep": 9, "asynchronous": False})
    run_folder, settle = run_file.parent / "run", Run.settle

    def settle_and_damage(self):
        outcome = settle(self)
        if self.guard.verdict.action == "rewind":
            for folder in step_folders(run_folder):
                (folder / "ledger.json").write_text("{}")
        return outcome

    monkeypatch.setattr(Run, "settle", settle_and_damage)
    fault([10])
    assert tiny.train(run_file) == 2
    assert "no checkpoint in it is whole" in capsys.readouterr().err
    assert len(step_folders(run_folder)) == 3
    assert not (run_folder / "skips.json").exists()


def test_a_branch_begins_its_own_count(run_file, fault, tiny, tmp_path):
    raw = yaml.safe_load(run_file.read_text())
    rewritten(run_file, guards={"non_finite": "skip", "max_skips": 2})
    fault([1, 4])
    assert tiny.train(run_file, "checkpoint.keep_steps=[6]") == 0
    folder = tmp_path / "branch"
    folder.mkdir()
    stage = {**raw["stages"][1], "tokens": 4 * 4 * 32}
    branch = {**raw, "output": str(folder / "run"), "branch": {"run": raw["output"], "step": 6}, "stages": [stage]}
    (folder / "run.yaml").write_text(yaml.safe_dump(branch | {"guards": {"non_finite": "skip", "max_skips": 2}}))
    fault([7, 8])
    assert tiny.train(folder / "run.yaml") == 0
    assert main(["audit", str(folder / "run")]) == 0
    assert skipped(folder / "run") == [(1, 2), (4, 5), (7, 8), (8, 9)]


@pytest.mark.parametrize("overrides", [(), pytest.param(("engine=deepspeed",), marks=NO_ZERO)])
def test_batches_without_any_target_are_no_measure(run_file, monkeypatch, overrides, tiny):
    """Their loss of 0 says nothing of what is usual, so that the first batch with targets is no spike; the first is said."""
    rewritten(run_file, guards={"spike": {"action": "skip", "window": 8, "of": "either"}})
    batches = Loader.batches

    def emptied(self, step):
        made = batches(self, step)
        for batch in made if step < 6 else ():
            batch.target_mask = torch.zeros_like(batch.target_mask)
            batch.num_excluded = torch.full_like(batch.num_excluded, batch.tokens.shape[1])
            batch.target_bytes = torch.zeros_like(batch.target_bytes)
        return made

    monkeypatch.setattr(Loader, "batches", emptied)
    assert tiny.train(run_file, *overrides) == 0
    assert skipped(run_file.parent / "run") == []
    assert len(trained_steps(run_file.parent / "run")) == STEPS
    (line,) = [line for line in read_log(run_file.parent / "run") if line["kind"] == "guard"]
    assert (line["step"], line["action"]) == (1, "go on")
    assert "no target in the whole batch" in line["why"]


@pytest.mark.parametrize(("changed", "left_out"), [((), [(5, 6), (6, 7)]), (("optimizer.clip_grad_norm=0.5", "--accept-changes"), [])])
def test_what_was_usual_is_so_no_longer_when_training_was_changed(run_file, monkeypatch, changed, left_out, tiny):
    """From step 6 on the loss is higher: a spike, unless optimizer or stages were changed on purpose just before."""
    rewritten(run_file, guards={"spike": {"action": "skip", "window": 10}})
    run, logged = Replicas.run, Recorder.step

    def higher(self, forward, batches, *, mode):
        records = run(self, forward, batches, mode=mode)
        if mode == "train" and stopped:
            records[0][0] += 1000
        return records

    def step_and_stop(self, done, *arguments):
        logged(self, done, *arguments)
        if done == 5 and not stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped: list[bool] = []
    monkeypatch.setattr(Replicas, "run", higher)
    monkeypatch.setattr(Recorder, "step", step_and_stop)
    assert tiny.train(run_file) == 75
    stopped.append(True)
    assert main(["train", str(run_file), *changed]) == 0
    assert skipped(run_file.parent / "run")[:2] == left_out
