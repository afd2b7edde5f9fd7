"""`engine: deepspeed` through the whole trainer, on one process: the other engine's figures, and either continues the other's run."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.pieces import EXP_AVG, PARAM, PieceReader
from megatron_codemix.train.recorder import Recorder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")

ZERO_3 = ("engine=deepspeed", "deepspeed={zero_stage: 3, persistent_elements: 0}")


def stop_after(monkeypatch, step: int) -> None:
    original = Recorder.step

    def step_and_stop(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "step", step_and_stop)


def assert_same_training(tiny, run_folder, reference, tolerance: float) -> None:
    """Same batches, tokens and rates; figures and weights within what another order of summation makes of them."""
    mine, theirs = tiny.figures(run_folder), tiny.figures(reference)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs):
        assert [value for value in one if not isinstance(value, float)] == [value for value in other if not isinstance(value, float)]
        floats = [[value for value in line if isinstance(value, float)] for line in (one, other)]
        assert floats[0] == pytest.approx(floats[1], rel=1e-5, abs=tolerance)
    one, other = Checkpoint.open(run_folder), Checkpoint.open(reference)
    assert one.ledger() == other.ledger() and one.record.cursors == other.record.cursors
    ours, original = PieceReader(one.weights), PieceReader(other.weights)
    assert ours.keys() == original.keys() and ours.step == original.step
    for key in ours.keys():  # noqa: SIM118 - a method of the reader, which is no mapping
        for kind in (PARAM, EXP_AVG):
            assert (ours.whole(key, kind) - original.whole(key, kind)).abs().max() < 1e-4, key


@pytest.mark.parametrize(
    "overrides", [("engine=deepspeed",), ("engine=deepspeed", "deepspeed={zero_stage: 2, offload_optimizer: cpu}"), ZERO_3]
)
def test_a_run_is_the_other_engines_run(run_file, reference, tiny, overrides):
    assert tiny.train(run_file, *overrides) == 0
    assert_same_training(tiny, run_file.parent / "run", reference, 1e-5)
    assert Checkpoint.open(run_file.parent / "run").record.engine == "deepspeed"


@pytest.mark.parametrize(("before", "after"), [((), ZERO_3), (ZERO_3, ()), (("engine=deepspeed",), ZERO_3)])
def test_either_engine_continues_the_others_run(run_file, reference, monkeypatch, capsys, tiny, before, after):
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        assert tiny.train(run_file, *before) == 75
    capsys.readouterr()
    assert tiny.train(run_file, *after, "checkpoint.final_form=routine") == 0
    if bool(before) != bool(after):
        engines = [("deepspeed" if chosen else "megatron") + ", one process" for chosen in (before, after)]
        assert f"continuing a checkpoint of {engines[0]} as {engines[1]} after step 4" in capsys.readouterr().err
    assert_same_training(tiny, run_file.parent / "run", reference, 1e-5)


def test_a_missing_package_is_one_line(run_file, monkeypatch, capsys, tiny):
    monkeypatch.setattr("megatron_codemix.engine.zero.library.TESTED_VERSION", "0.1")
    assert tiny.train(run_file, "engine=deepspeed") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "only 0.1 is proven here" in said[0]


def test_the_trainer_starts_without_deepspeed():
    """It takes a second to import, and is not everybody's."""
    code = "import sys, megatron_codemix.cli, megatron_codemix.train.assemble, megatron_codemix.engine; print('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_check_knows_the_engine(run_file, capsys):
    overrides = ["engine=deepspeed", "deepspeed={zero_stage: 3, offload_optimizer: cpu, bucket_elements: 10}"]
    assert main(["check", str(run_file), *overrides, "micro_batch_size=1", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "DeepSpeed, ZeRO stage 3; " in said and "of host memory for what is offloaded" in said and "optimizer (fp32)" not in said
    assert main(["check", str(run_file), *overrides, "--suggest", "--gpus", "2"]) == 2
    assert "proposes layouts of engine 'megatron'" in capsys.readouterr().err
    assert main(["check", str(run_file), "engine=deepspeed", "deepspeed.zero_stage=2", "parallel.pipeline=2"]) == 2
    assert "deepspeed.zero_stage: 2 exchanges gradients" in capsys.readouterr().err
