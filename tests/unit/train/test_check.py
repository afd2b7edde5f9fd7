"""`codemix check`: what it says of a run that was never trained."""

import json

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.train.check import main


def test_check_says_what_a_run_will_do(run_file, capsys):
    assert main([str(run_file), "--batches", "2"]) == 0
    said = capsys.readouterr().out
    for words in ("valid", "parameters", "memory per rank", "tokens per parameter", "checkpoints", "decoded:", "share of bytes"):
        assert words in said


def test_check_says_what_rates_mean_under_width_transfer(run_file, capsys):
    assert main([str(run_file), "width_transfer.base_hidden_size=8"]) == 0
    assert (
        "tuned at hidden_size 8, here 32: matrices of the layers and the output's learn at 0.25 × the rates below"
        in capsys.readouterr().out
    )


def test_check_warns_of_a_run_without_checkpoints(run_file, capsys):
    assert main([str(run_file), "checkpoint.every_steps=0"]) == 0
    assert "a kill would cost all of the run" in capsys.readouterr().out


def test_check_says_what_the_layout_of_so_many_gpus_costs(run_file, capsys):
    layout = ["parallel={tensor: 2, pipeline: 2, distributed_optimizer: true}", "micro_batch_size=1", "--gpus", "8", "--mfu", "0.5"]
    assert main([str(run_file), *layout]) == 0
    said = capsys.readouterr().out
    for words in (
        "tensor 2 × pipeline 2 × context 1 × data 2 = 8 rank(s)",
        "layers on each pipeline rank: 1, 1",
        "per token",
        "at pipeline rank",
    ):
        assert words in said
    assert "hours on 8 GPU(s)" in said and "at 50% MFU of 0.1 TFLOP/s" in said


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--gpus", "3"], "cannot be shared by 3 data-parallel ranks"),
        (["parallel.tensor=2", "--gpus", "3"], "does not divide the 3 process"),
        (["--gpus", "0"], "--gpus 0: give a number of GPUs"),
        (["--mfu", "40"], "--mfu 40: give a share"),
        (["--memory", "-1", "--suggest", "--gpus", "2"], "--memory -1"),
        (["--suggest"], "--suggest: needs --gpus"),
        (["--json"], "--json: goes with --suggest"),
    ],
)
def test_check_refuses_what_does_not_suit(run_file, options, expected):
    with pytest.raises(UserError, match=expected):
        main([str(run_file), *options])


def test_check_suggests_layouts(run_file, capsys):
    assert main([str(run_file), "--suggest", "--gpus", "4", "--memory", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 GPU(s) of 1 GiB" in said and "micro_batch_size=" in said
    assert main([str(run_file), "--suggest", "--gpus", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([str(run_file), *found[0]["overrides"], "--gpus", "4"]) == 0


def test_check_shows_rates_and_batches_of_every_stage(run_file, capsys):
    ramp = "stages.0.batch_size={start: 2, end: 4, increment: 2, tokens: 128}"
    assert main([str(run_file), ramp, "stages.1.learning_rate=continue"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith(("first ", "second "))}
    assert rows["first"][1:5] == ["0", "0", "cosine", "0.0025"] and rows["first"][5] == "0.01"
    assert rows["second"][2:5] == ["1,024", "goes", "on"] and rows["second"][-1] == "0.002"
    assert "stage 'first': batches of 2 from step 0, 4 from step 2" in said and "2 → 4" in said
