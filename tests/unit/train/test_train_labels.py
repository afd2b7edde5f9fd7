"""Loss weights of kinds that the shards do not have."""

import pytest

from megatron_codemix import cli
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind
from megatron_codemix.train.check import main
from megatron_codemix.train.labels import kinds_of


def test_a_source_without_segments_is_all_of_one_kind():
    assert kinds_of(Kind.CODE, False) == {"code"}
    assert kinds_of(Kind.CODE, True) == {"text", "code", "comment", "docstring", "signature", "body"}


def test_weights_that_change_nothing_are_said(run_file, capsys):
    assert main([str(run_file), "stages.0.objective={loss_weights: {docstring: 0, comment: 0.5, text: 0.5}}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("caution: ")]
    assert "stages[0].objective.loss_weights: comment, docstring change nothing: the shards of code, text have no such segments" in line
    assert main([str(run_file), "stages.0.objective={loss_weights: {text: 0.5}}"]) == 0
    assert "caution" not in capsys.readouterr().out


def test_a_source_of_which_nothing_is_learnt_is_said(run_file, capsys):
    assert main([str(run_file), "stages.0.objective={loss_weights: {text: 0}}"]) == 0
    assert "caution: stages[0].objective.loss_weights: every label of 'text' has weight 0" in capsys.readouterr().out


def test_a_stage_without_any_target_is_refused(run_file):
    with pytest.raises(UserError, match=r"stages\[1\].*: no label of this stage would be a target, since all are code"):
        main([str(run_file), "stages.1.objective={loss_weights: {code: 0}}"])


def test_training_says_it_too(run_file, capsys, tiny):
    short = ["stages.1.tokens=128", "stages.0.tokens=256", "validation.every_steps=0"]
    assert tiny.train(run_file, *short, "stages.0.objective={loss_weights: {docstring: 0}}") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caution: ")]
    assert line.startswith("caution: stages[0].objective.loss_weights: docstring changes nothing: the shards of code, text have no such")
    assert cli.main(["train", str(run_file), f"output={run_file.parent / 'other'}", "stages.1.objective={loss_weights: {code: 0}}"]) == 2
    assert "stages[1].objective.loss_weights: no label of this stage would be a target" in capsys.readouterr().err
    assert not (run_file.parent / "other").exists()
