"""`codemix check`: what it says of a run that was never trained."""

from megatron_codemix.train.check import main


def test_check_says_what_a_run_will_do(run_file, capsys):
    assert main([str(run_file), "--batches", "2"]) == 0
    said = capsys.readouterr().out
    for words in ("valid", "parameters", "memory per rank", "tokens per parameter", "checkpoints", "decoded:", "share of bytes"):
        assert words in said


def test_check_warns_of_a_run_without_checkpoints(run_file, capsys):
    assert main([str(run_file), "checkpoint.every_steps=0"]) == 0
    assert "a kill would cost all of the run" in capsys.readouterr().out
