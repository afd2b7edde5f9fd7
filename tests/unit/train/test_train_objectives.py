"""Runs whose stages have objectives: the same bits after any stop, the ledger reconciled, validation as ever."""

import os
import signal

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.train import read_log
from megatron_codemix.train.recorder import Recorder

FIRST = {"fim": {"rate": {"code": 0.5}}, "corruption": {"rate": 0.1, "mean_span": 2}, "loss_weights": {"text": 0.5}}
SECOND = {"fim": {"rate": 0.6, "spm": 1}, "prefix": {"rate": 0.5}}


def with_objectives(run_file, output: str):
    raw = yaml.safe_load(run_file.read_text())
    raw["output"] = str(run_file.parent / output)
    for stage, objective in zip(raw["stages"], (FIRST, SECOND), strict=True):
        stage["objective"] = objective
    path = run_file.with_name(f"{output}.yaml")
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("stop", [5, 8, 10])
def test_a_stopped_run_goes_on_to_the_bit(run_file, tiny, monkeypatch, stop, capsys):
    """Within a stage, where objectives change, and within the next."""
    whole, halted = with_objectives(run_file, "whole"), with_objectives(run_file, "halted")
    assert tiny.train(whole) == 0
    original = Recorder.step

    def step_and_stop(self, done, *arguments):
        original(self, done, *arguments)
        if done == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "step", step_and_stop)
        assert tiny.train(halted) == 75
    assert tiny.train(halted) == 0
    folders = [run_file.parent / name for name in ("whole", "halted")]
    assert tiny.figures(folders[0]) == tiny.figures(folders[1])
    assert tiny.final_state(folders[0]) == tiny.final_state(folders[1])
    capsys.readouterr()
    assert main(["audit", str(folders[1])]) == 0
    assert "agreed" in capsys.readouterr().out


def test_ledger_log_and_validation(run_file, reference, tiny):
    path = with_objectives(run_file, "whole")
    assert tiny.train(path) == 0
    folder = run_file.parent / "whole"
    ledger = Checkpoint.open(folder).ledger()["sources"]
    steps = [line for line in read_log(folder) if line["kind"] == "step"]
    assert steps[-1]["tokens"] == sum(entry["targets"] for entry in ledger.values())
    assert all(entry["targets"] + entry["padding"] + entry.get("excluded", 0) == entry["tokens"] for entry in ledger.values())
    assert ledger["code"]["excluded"] > 0
    plain = Checkpoint.open(reference).ledger()["sources"]
    assert {name: entry["hash"] for name, entry in ledger.items()} == {name: entry["hash"] for name, entry in plain.items()}
    measured, as_ever = ([line for line in read_log(run) if line["kind"] == "validation"] for run in (folder, reference))
    assert [line["target_tokens"] for line in measured] == [line["target_tokens"] for line in as_ever]
    assert [line["bytes"] for line in measured] == [line["bytes"] for line in as_ever]


def test_another_objective_is_another_run(run_file, tiny, capsys):
    path = with_objectives(run_file, "whole")
    assert tiny.train(path) == 0
    capsys.readouterr()
    assert tiny.train(path, "stages.0.objective=clm") == 2
    assert "stages.0.objective" in capsys.readouterr().err
    assert tiny.train(path, "stages.0.objective=clm", "--accept-changes") == 2
    assert "was for the objective 'clm; fim code 0.5 (spm 0.5); corruption 0.1" in capsys.readouterr().err
