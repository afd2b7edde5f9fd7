"""Stages over two processes: a ramped batch, a schedule over several mixtures, an objective that is switched on, a longer window; stopped
inside the ramp and at the boundaries, under five layouts; stages changed on purpose; a branch. One launch (stages_worker.py) trains all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.cli import main
from megatron_codemix.train import read_log

# nine trainings in one launch: on a loaded machine more than the ten minutes that a test has, and the last of them would be cut short
pytestmark = pytest.mark.timeout(3600)
LENGTH = 32
TOLERANCE = 1e-6
"""Of a loss in nats, fp32 without dropout, against one process."""
BATCHES = [2, 2, 2, 4, 4, 6, 6, 4, 4, 4, 2, 2]
"""Windows of each step: 6 windows at 2, 6 at 4 (two steps are 8), then 6; 4; 2 of twice the length. By hand."""
TOKENS = [size * LENGTH for size in BATCHES[:10]] + [size * 2 * LENGTH for size in BATCHES[10:]]


def declared() -> list[dict]:
    first = {
        "name": "ramped",
        "tokens": 24 * LENGTH,
        "mixture": {"code": {"start": 1, "end": 0.5}, "more": {"start": 0, "end": 0.5}},
        "batch_size": {"start": 2, "end": 6, "increment": 2, "tokens": 12 * LENGTH},
        "sequence_length": LENGTH,
        "learning_rate": {"shape": "cosine", "peak": 0.01, "final": 0.002, "warmup_tokens": 4 * LENGTH},
    }
    second = {
        "name": "infilling",
        "tokens": 12 * LENGTH,
        "begins_at_tokens": 24 * LENGTH,
        "mixture": {"code": 0.25, "more": 0.75},
        "batch_size": 4,
        "sequence_length": LENGTH,
        "learning_rate": "continue",
        "objective": {"fim": {"rate": 0.5}},
    }
    third = {
        "name": "long",
        "tokens": 8 * LENGTH,
        "mixture": {"code": 0.5, "more": 0.5},
        "batch_size": 2,
        "sequence_length": 2 * LENGTH,
        "learning_rate": {"shape": "linear", "peak": "continue", "final": 1e-4},
    }
    return [first, second, third]


def write_runs(folder: Path, corpus: Path) -> None:
    config = {
        "name": "staged",
        "output": "given on the command line",
        "tokenizer": str(corpus),
        "sources": {name: {"path": str(corpus / "halves" / name), "validation_split": None, "max_epochs": 20} for name in ("code", "more")},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 64},
        "stages": declared(),
        "precision": "fp32",
        "checkpoint": {"every_steps": 4, "keep": 3, "final_form": "neutral"},
        "logging": {"every_steps": 100, "peak_tflops": 0.1, "tensorboard": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    changed = copy.deepcopy(config)
    changed["stages"] = [{**changed["stages"][0], "learning_rate": {"shape": "constant", "peak": 0.005}}, changed["stages"][2]]
    (folder / "changed.yaml").write_text(yaml.safe_dump(changed))
    branch = copy.deepcopy(config)
    branch.update(branch={"run": str(folder / "whole"), "step": 4}, stages=[branch["stages"][2]])
    (folder / "branch.yaml").write_text(yaml.safe_dump(branch))


@pytest.fixture(scope="module")
def folder(shared: Callable[..., Path], corpus: Path, launch: Callable[..., str]) -> Path:
    """The folder of all runs."""

    def make(folder: Path) -> None:
        write_runs(folder, corpus)
        assert main(["train", str(folder / "run.yaml"), f"output={folder / 'one'}"]) == 0
        launch("stages_worker.py", folder, seconds=3000)

    return shared("stages", make)


def steps(run: Path, field: str) -> list:
    found = {line["step"]: line[field] for line in read_log(run) if line["kind"] == "step"}
    return [found[step] for step in sorted(found)]


def by_hand() -> list[float]:
    """Warm-up over 4 windows, a cosine to 0.002 over the 40 windows of two stages, then linear to 1e-4."""
    ends = [sum(BATCHES[: step + 1]) for step in range(10)]
    rates = [0.01 * end / 4 if end <= 4 else 0.002 + 0.008 * (1 + math.cos(math.pi * (end - 4) / (ends[-1] - 4))) / 2 for end in ends]
    return [*rates, 0.002, 1e-4]


def test_rates_and_batches_are_those_worked_out_by_hand(folder):
    assert steps(folder / "one", "learning_rate") == pytest.approx(by_hand(), rel=1e-12)
    tokens = steps(folder / "one", "tokens")
    assert [after - before for before, after in zip([0, *tokens], tokens, strict=False)][:7] == TOKENS[:7]
    assert steps(folder / "one", "stage") == ["ramped"] * 7 + ["infilling"] * 3 + ["long"] * 2


def test_a_run_through_five_layouts_is_the_run_of_one_process(folder):
    for name in ("whole", "chain"):
        pairs = zip(steps(folder / name, "loss"), steps(folder / "one", "loss"), strict=True)
        assert max(abs(mine - theirs) for mine, theirs in pairs) <= TOLERANCE
        assert steps(folder / name, "learning_rate") == steps(folder / "one", "learning_rate")
        assert steps(folder / name, "tokens") == steps(folder / "one", "tokens")
        assert Checkpoint.open(folder / name).ledger() == Checkpoint.open(folder / "one").ledger()


def test_resumed_inside_the_ramp_under_its_own_layout_it_is_the_same_to_the_bit(folder):
    assert steps(folder / "parted", "loss") == steps(folder / "whole", "loss")
    weights = [{path.name: path.read_bytes() for path in Checkpoint.open(folder / name).weights.iterdir()} for name in ("parted", "whole")]
    assert weights[0] == weights[1]


def test_the_ledger_equals_the_plan_to_the_token(folder, capsys):
    for name in ("one", "whole", "chain", "parted", "changed", "branch"):
        assert main(["audit", str(folder / name)]) == 0, capsys.readouterr().out
    counted = Checkpoint.open(folder / "chain").ledger()["sources"]
    assert sum(entry["tokens"] for entry in counted.values()) == sum(TOKENS)
    assert sum(entry["windows"] for entry in counted.values()) == sum(BATCHES)


def test_changed_on_purpose_by_all_processes_alike(folder):
    assert steps(folder / "changed", "learning_rate")[:4] == steps(folder / "one", "learning_rate")[:4]
    assert steps(folder / "changed", "learning_rate")[4:] == pytest.approx([0.005] * 3 + [0.005, 1e-4])
    intervals = Checkpoint.open(folder / "changed").lineage()["intervals"]
    assert [(interval["first"], interval["end"], bool(interval.get("changes"))) for interval in intervals] == [(0, 4, False), (4, 9, True)]


def test_a_branch_leaves_inside_the_ramp(folder):
    rate = by_hand()[3]
    assert steps(folder / "branch", "learning_rate") == pytest.approx([rate, 1e-4])
    checkpoint, trunk = Checkpoint.open(folder / "branch"), plan_of(folder / "whole")
    assert checkpoint.step == 6
    assert [(interval["end"], interval["plan"] == trunk) for interval in checkpoint.lineage()["intervals"]] == [(4, True), (6, False)]


def plan_of(run: Path) -> str:
    return Checkpoint.open(run).record.plan
