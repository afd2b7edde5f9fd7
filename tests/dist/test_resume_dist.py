"""`codemix train` of two processes, stopped and continued: bit for bit under one layout, to rounding through five.

One launch (resume_worker.py) trains them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.checkpoint.manage import verified
from megatron_codemix.cli import main
from megatron_codemix.train import read_log

STEPS, SEQUENCE, BATCH = 12, 32, 4
TOLERANCE = 1e-6
"""Of a loss in nats, fp32 without dropout, against the run that stayed under one layout."""


def write_run(folder: Path, corpus: Path) -> None:
    stage = {
        "name": "only",
        "tokens": STEPS * BATCH * SEQUENCE,
        "mixture": {"code": 0.75, "more": 0.25},
        "batch_size": BATCH,
        "sequence_length": SEQUENCE,
        "learning_rate": {"shape": "linear", "peak": 0.01, "warmup_tokens": 2 * BATCH * SEQUENCE},
    }
    config = {
        "name": "resumed",
        "output": "given on the command line",
        "tokenizer": str(corpus),
        "sources": {name: {"path": str(corpus / "halves" / name), "validation_split": None, "max_epochs": 20} for name in ("code", "more")},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64},
        "stages": [stage],
        "precision": "fp32",
        "checkpoint": {"every_steps": 2, "keep": 3, "keep_every_steps": 5},
        "logging": {"every_steps": 100, "peak_tflops": 0.1, "tensorboard": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    config["sources"] = dict(reversed(config["sources"].items()))
    (folder / "reordered.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
def runs(shared: Callable[..., Path], corpus: Path, launch: Callable[..., str]) -> tuple[Path, str]:
    """The folder of all runs, and what was said on the console (stderr, then stdout)."""

    def make(folder: Path) -> None:
        write_run(folder, corpus)
        (folder / "said.txt").write_text(launch("resume_worker.py", folder))

    folder = shared("resume", make)
    return folder, (folder / "said.txt").read_text()


def losses(run_folder: Path) -> list[float]:
    found = {line["step"]: line["loss"] for line in read_log(run_folder) if line["kind"] == "step"}
    assert sorted(found) == list(range(1, STEPS + 1))
    return [found[step] for step in sorted(found)]


def weights(run_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Checkpoint.open(run_folder).weights.iterdir()}


def test_a_run_through_five_layouts_is_the_run_under_one(runs):
    folder, said = runs
    difference = max(abs(mine - theirs) for mine, theirs in zip(losses(folder / "chain"), losses(folder / "whole"), strict=True))
    assert difference <= TOLERANCE
    assert Checkpoint.open(folder / "chain").ledger() == Checkpoint.open(folder / "whole").ledger()
    before = "DP2+distributed optimizer"
    for words, step in (("TP2+SP", 3), ("PP2", 5), ("CP2", 8), ("DP2+distributed optimizer", 10)):
        assert f"continuing a checkpoint of {before} as {words} after step {step}" in said
        before = words
    saves = [line["step"] for line in read_log(folder / "whole") if line["kind"] == "checkpoint"]
    assert saves == [2, 4, 6, 8, 10, 12]
    assert main(["audit", str(folder / "chain")]) == 0


def test_resumed_under_its_own_layout_with_dropout_it_is_the_same_to_the_bit(runs):
    folder, _ = runs
    assert losses(folder / "dropout-parted") == losses(folder / "dropout-whole")
    assert losses(folder / "dropout-whole") != losses(folder / "whole")
    assert weights(folder / "dropout-parted") == weights(folder / "dropout-whole")


def test_sources_that_change_places_are_counted_by_name(runs):
    """Two data ranks: rank 0 has the past of the ledger, and each save merges both."""
    folder, _ = runs
    assert losses(folder / "reordered") == losses(folder / "whole")
    ledger = Checkpoint.open(folder / "reordered").ledger()
    assert ledger == Checkpoint.open(folder / "whole").ledger()
    assert list(ledger["sources"]) == ["more", "code"]
    assert main(["audit", str(folder / "reordered")]) == 0


def test_a_finished_run_says_so_once_for_all_processes(runs):
    folder, said = runs
    assert said.count("finished already") == 1
    assert len([line for line in read_log(folder / "whole") if line["kind"] == "start"]) == 1


def test_a_disk_that_refuses_one_process_ends_all_with_its_line(runs):
    _, said = runs
    assert said.count("codemix train: weights of rank 1: Stale file handle; mend that, then start the same command again") == 2
    assert "Traceback" not in said


def test_the_rule_says_what_is_kept_and_all_of_it_is_whole(runs):
    folder, _ = runs
    kept = sorted((folder / "chain" / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"step-{step:08d}" for step in (5, 8, 10, 12)]
    records = [Checkpoint.open(path).record for path in kept]
    assert [record.attempt for record in records] == [1, 2, 3, 4]
    assert [record.form for record in records] == ["routine"] * 3 + ["neutral"]
    assert [record.layout.words() for record in records] == ["TP2+SP", "PP2", "CP2", "DP2+distributed optimizer"]
    assert [len(list((path / "weights").iterdir())) for path in kept] == [2, 2, 2, 2]
    assert all(verified(path) for path in kept)
