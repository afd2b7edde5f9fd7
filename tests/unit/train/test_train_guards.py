"""`codemix train` with faults put into its steps: stopped at, left out, gone back from, in the same way after every restart."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable

import pytest
import torch
import yaml

from megatron_codemix.checkpoint import Checkpoint, step_folders
from megatron_codemix.cli import main
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.engine.chunks import Replicas
from megatron_codemix.files import sha256_file, write_json
from megatron_codemix.shards import mapping
from megatron_codemix.train import going_back, read_log
from megatron_codemix.train.guards import rewind
from megatron_codemix.train.recorder import Recorder

STEPS = 12
NAN = float("nan")


@pytest.fixture
def fault(monkeypatch) -> Callable[[Iterable[int], float, float], None]:
    """fault(steps, gradient, loss): in these steps (0-based), a tensor's gradient is multiplied, and the loss raised."""

    def install(steps: Iterable[int], gradient: float = 1.0, loss: float = 0.0) -> None:
        faulty, now = set(steps), {}
        run, train_step = Replicas.run, MegatronEngine.train_step

        def remember(self, *arguments, **keywords):
            now["step"] = self.step
            return train_step(self, *arguments, **keywords)

        def spoil(self, forward, batches, *, mode):
            records = run(self, forward, batches, mode=mode)
            if mode == "train" and now["step"] in faulty:
                next(iter(self.chunks[0].parameters())).main_grad.mul_(gradient)
                records[0][0] += loss * 1000
            return records

        monkeypatch.setattr(MegatronEngine, "train_step", remember)
        monkeypatch.setattr(Replicas, "run", spoil)

    return install


@pytest.fixture
def stop_after(monkeypatch) -> Callable[[int], None]:
    def install(step: int) -> None:
        original = Recorder.step

        def step_and_stop(self, done, *arguments):
            original(self, done, *arguments)
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Recorder, "step", step_and_stop)

    return install


def guarded(run_file, **guards) -> None:
    """Write a guards section into the run file."""
    run_file.write_text(yaml.safe_dump({**yaml.safe_load(run_file.read_text()), "guards": guards}))


def weights(run_folder) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in Checkpoint.open(run_folder).weights.glob("*.safetensors")}


def same_end(run_folder, other, tiny) -> bool:
    """Whether two runs have seen the same and come to the same."""
    return tiny.final_state(run_folder) == tiny.final_state(other) and tiny.figures(run_folder) == tiny.figures(other)


def skipped(run_folder) -> list[tuple[int, int]]:
    return [(entry["first"], entry["end"]) for entry in Checkpoint.open(run_folder).lineage()["skipped"]]


def trained_steps(run_folder) -> list[int]:
    return [line["step"] - 1 for line in read_log(run_folder) if line["kind"] == "step"]


def windows(run_folder) -> int:
    return sum(source["windows"] for source in Checkpoint.open(run_folder).ledger()["sources"].values())


@pytest.fixture
def leaving_out(corpus, run_file, tmp_path, tiny) -> Callable[[int, int, int], object]:
    """leaving_out(first, end, from_step): the run folder of a run without any fault, told to leave out these steps."""

    def make(first: int, end: int, from_step: int):
        folder = tmp_path / f"told-{first}-{end}"
        folder.mkdir()
        raw = yaml.safe_load(run_file.read_text()) | {"output": str(folder / "run")}
        (folder / "run.yaml").write_text(yaml.safe_dump(raw))
        with pytest.MonkeyPatch.context() as patched:
            original = Recorder.step

            def step_and_stop(self, done, *arguments):
                original(self, done, *arguments)
                if done == from_step:
                    os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(Recorder, "step", step_and_stop)
            assert tiny.train(folder / "run.yaml") == 75
        skip = {"first": first, "end": end, "fault": first, "why": "told"}
        write_json(folder / "run" / "skips.json", {"format_version": 1, "skips": [skip]})
        assert tiny.train(folder / "run.yaml") == 0
        return folder / "run"

    return make


def test_a_run_without_faults_is_the_same_with_every_guard_on(run_file, reference, tiny):
    guarded(run_file, non_finite="rewind", spike={"action": "rewind", "window": 8}, ranks_every_steps=1, collect_garbage_every_steps=2)
    assert tiny.train(run_file) == 0
    assert same_end(run_file.parent / "run", reference, tiny)
    lines = [line for line in read_log(run_file.parent / "run") if line["kind"] == "ranks"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(0 < line["median_seconds"] == line["seconds"] and line["host_memory"]["bytes"] > 1 << 20 for line in lines)


def test_no_number_stops_the_run_before_it_reaches_the_weights(run_file, fault, capsys, monkeypatch, tiny):
    engines = []
    build = MegatronEngine.__init__

    def remember(self, *arguments):
        build(self, *arguments)
        engines.append(self)

    monkeypatch.setattr(MegatronEngine, "__init__", remember)
    fault([7], gradient=NAN)
    assert tiny.train(run_file) == 1
    assert "step 8: loss" in capsys.readouterr().err
    (engine,) = engines
    assert all(torch.isfinite(parameter).all() for parameter in engine.model.parameters())
    assert Checkpoint.open(run_file.parent / "run").step == 6
    (line,) = [line for line in read_log(run_file.parent / "run") if line["kind"] == "diverged"]
    assert (line["step"], line["grad_norm"]) == (8, "nan")


def test_an_update_is_left_out(run_file, reference, fault, capsys, tiny):
    guarded(run_file, non_finite="skip")
    fault([4, 5, 9], gradient=NAN)
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    assert trained_steps(run_folder) == [step for step in range(STEPS) if step not in (4, 5, 9)]
    assert tiny.figures(run_folder)[:4] == tiny.figures(reference)[:4]
    assert skipped(run_folder) == [(4, 5), (5, 6), (9, 10)]
    assert windows(run_folder) == windows(reference) - 4 - 4 - 2
    assert Checkpoint.open(run_folder).record.cursors == Checkpoint.open(reference).record.cursors
    said = [line for line in read_log(run_folder) if line["kind"] == "guard"]
    assert [(line["step"], line["action"], line["grad_norm"]) for line in said] == [
        (5, "skip", "nan"),
        (6, "skip", "nan"),
        (10, "skip", "nan"),
    ]
    capsys.readouterr()
    assert main(["audit", str(run_folder)]) == 0
    assert "skipped: steps 9 to 10, in the log step 10 (step 10: loss" in capsys.readouterr().out


def test_a_lineage_that_hides_a_skip_fails_the_audit(run_file, fault, capsys, tiny):
    guarded(run_file, non_finite="skip")
    fault([4], gradient=NAN)
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    path = Checkpoint.open(run_folder).folder / "lineage.json"
    lineage = json.loads(path.read_text())
    lineage["skipped"] = []
    lineage["intervals"] = [{**lineage["intervals"][0], "end": STEPS}]
    path.write_text(json.dumps(lineage))
    assert main(["audit", str(run_folder)]) == 1
    assert "fewer than planned" in capsys.readouterr().out


@pytest.mark.parametrize("parted", [3, 6, 8, 10])
def test_a_restart_skips_what_the_whole_run_skips(run_file, tmp_path, fault, parted, tiny):
    guarded(run_file, spike={"action": "skip", "window": 8, "sigmas": 4.0}, non_finite="skip", max_skips=3)
    fault([6, 11], loss=1.0)
    fault([3], gradient=NAN)
    assert tiny.train(run_file) == 0
    whole = shutil.move(run_file.parent / "run", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patched:
        original = Recorder.step

        def step_and_stop(self, done, *arguments):
            original(self, done, *arguments)
            if done == parted:
                os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(Recorder, "step", step_and_stop)
        assert tiny.train(run_file) == 75
    assert tiny.train(run_file) == 0
    assert same_end(run_file.parent / "run", whole, tiny)
    assert skipped(run_file.parent / "run") == skipped(whole) == [(3, 4), (6, 7)]
    assert Checkpoint.open(run_file.parent / "run").guards() == Checkpoint.open(whole).guards()


def test_too_many_skips_stop_the_run_in_one_line(run_file, fault, capsys, tiny):
    guarded(run_file, non_finite="skip", max_skips=2)
    fault(range(4, STEPS), gradient=NAN)
    assert tiny.train(run_file) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 7: loss" in error
    assert "guards.max_skips 2 is used up: training has diverged" in error
    assert "Traceback" not in error


def test_a_run_goes_back_and_leaves_out_what_surrounds_the_fault(run_file, fault, leaving_out, capsys, tiny):
    guarded(run_file, non_finite="rewind", skip_before=3, skip_after=2)
    told = leaving_out(4, 9, 3)
    fault([7], gradient=NAN)
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    assert "went back to the checkpoint of step 3; steps 5 to 9 are left out (step 8: loss" in capsys.readouterr().err
    assert trained_steps(run_folder) == [*range(4), *range(9, STEPS)]
    assert skipped(run_folder) == skipped(told) == [(4, 9)]
    assert same_end(run_folder, told, tiny)
    assert main(["audit", str(run_folder)]) == 0
    (line,) = [line for line in read_log(run_folder) if line["kind"] == "rewind"]
    assert (line["first_step"], line["fault"], line["first"], line["end"]) == (3, 7, 4, 9)
    assert [path.name for path in step_folders(run_folder)] == ["step-00000012", "step-00000009"]


def test_a_loss_spike_sends_the_run_back(run_file, fault, tiny):
    guarded(run_file, spike={"action": "rewind", "window": 8}, skip_before=0, skip_after=1)
    fault([6], loss=1.0)
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    assert skipped(run_folder) == [(6, 7)]
    assert main(["audit", str(run_folder)]) == 0


@pytest.mark.parametrize("stop", [4, 5, 10])
def test_a_restart_obeys_what_was_planned(run_file, fault, leaving_out, stop_after, stop, tiny):
    """Stopped behind the rewind: before the steps to be left out, and behind them."""
    guarded(run_file, non_finite="rewind", skip_before=2, skip_after=3)
    told = leaving_out(5, 10, 3)
    run_folder = run_file.parent / "run"
    with pytest.MonkeyPatch.context() as patched:
        went_back = Recorder.went_back

        def stop_from_here(self, *arguments):
            went_back(self, *arguments)
            original = Recorder.step

            def step_and_stop(self, done, *arguments):
                original(self, done, *arguments)
                if done >= stop:
                    os.kill(os.getpid(), signal.SIGTERM)

            patched.setattr(Recorder, "step", step_and_stop)

        patched.setattr(Recorder, "went_back", stop_from_here)
        fault([7], gradient=NAN)
        assert tiny.train(run_file) == 75
    fault([7], gradient=NAN)  # would be met again
    assert tiny.train(run_file) == 0
    assert same_end(run_folder, told, tiny)
    assert main(["audit", str(run_folder)]) == 0
    assert len(json.loads((run_folder / "skips.json").read_text())["skips"]) == 1


POINTS = {
    "it is written down": (going_back, "plan_skip"),
    "checkpoints are given up": (going_back, "give_up"),
    "one is deleted": (rewind, "discard"),
    "the checkpoint is read": (going_back, "resume_point"),
    "the weights are loaded": (MegatronEngine, "load_pieces"),
    "it is logged": (Recorder, "went_back"),
}
"""Where a rewind is cut short, before or behind it."""


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_rewind_that_is_cut_short_is_carried_out_by_the_next_start(run_file, fault, leaving_out, point, behind, tiny):
    guarded(run_file, non_finite="rewind", skip_before=2, skip_after=2)
    told = leaving_out(5, 9, 3)
    run_folder = run_file.parent / "run"
    owner, name = POINTS[point]
    fault([7], gradient=NAN)
    with pytest.MonkeyPatch.context() as patched:
        original = getattr(owner, name)

        def cut(*arguments, **keywords):
            if behind:
                original(*arguments, **keywords)
            raise KeyboardInterrupt

        patched.setattr(owner, name, cut)
        assert tiny.train(run_file) == 130
    assert tiny.train(run_file) == 0
    assert same_end(run_folder, told, tiny)
    assert skipped(run_folder) == [(5, 9)]
    assert main(["audit", str(run_folder)]) == 0
    assert len(json.loads((run_folder / "skips.json").read_text())["skips"]) == 1


def test_rewinds_are_bounded(run_file, fault, capsys, tiny):
    guarded(run_file, non_finite="rewind", skip_before=1, skip_after=1, max_rewinds=2)
    fault(range(7, STEPS), gradient=NAN)
    assert tiny.train(run_file) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 10: loss" in error
    assert "guards.max_rewinds 2 is used up: training has diverged" in error
    assert Checkpoint.open(run_file.parent / "run").step <= 9


def test_nothing_to_go_back_to_is_one_line(run_file, fault, capsys, tiny):
    guarded(run_file, non_finite="rewind")
    fault([1], gradient=NAN)
    assert tiny.train(run_file) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "there is no checkpoint to go back to: set checkpoint.every_steps" in error


def test_a_run_begun_anew_forgets_what_was_planned(run_file, reference, tiny):
    run_folder = run_file.parent / "run"
    run_folder.mkdir()
    skip = {"first": 2, "end": 5, "fault": 3, "why": "of a run that was deleted"}
    write_json(run_folder / "skips.json", {"format_version": 1, "skips": [skip]})
    assert tiny.train(run_file) == 0
    assert same_end(run_folder, reference, tiny)
    assert not (run_folder / "skips.json").exists()


def test_a_damaged_file_of_skips_is_one_line(run_file, stop_after, capsys, tiny):
    stop_after(4)
    assert tiny.train(run_file) == 75
    (run_file.parent / "run" / "skips.json").write_text("{")
    capsys.readouterr()
    assert tiny.train(run_file) == 2
    assert "skips.json: this list of skipped steps cannot be read" in capsys.readouterr().err


def test_a_shard_altered_while_the_run_reads_it_ends_it_in_one_line(corpus, run_file, tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.setattr(mapping, "LOOK_SECONDS", 0.0)  # steps of milliseconds
    copied = shutil.copytree(corpus, tmp_path / "corpus")
    run_file.write_text(run_file.read_text().replace(str(corpus), str(copied)))
    original = Recorder.step

    def step_and_alter(self, done, *arguments):
        original(self, done, *arguments)
        if done == 4:
            for shard in (copied / "code" / "train").glob("*.tar"):
                with open(shard, "r+b") as handle:
                    handle.write(b"x")
                os.utime(shard)

    monkeypatch.setattr(Recorder, "step", step_and_alter)
    assert tiny.train(run_file) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert ".tar: was altered while it was read; run 'codemix prep verify'" in error
    assert Checkpoint.open(run_file.parent / "run").step in (3, 6)  # a save in flight is given up with the process
