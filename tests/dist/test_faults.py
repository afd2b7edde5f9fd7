"""SIGKILL at seeded moments of real runs: the same command continues, and ends bit for bit like the run that nobody disturbed.

6 kills here; 50 over more layouts with CODEMIX_SOAK=1 (`make soak`). CODEMIX_FAULT_SEED draws other moments, CODEMIX_FAULT_KILLS sets
their number in each layout.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_codemix.train import read_log

pytestmark = pytest.mark.timeout(3600)  # many starts of a trainer, each of which imports for seconds
SOAK = os.environ.get("CODEMIX_SOAK") == "1"
# Chosen so that CI's six kills lie in six places: in a step, behind a snapshot, in a file, between files, at the record, at a deletion.
SEED = int(os.environ.get("CODEMIX_FAULT_SEED", "593"))
KILLS = int(os.environ.get("CODEMIX_FAULT_KILLS", "10" if SOAK else "3"))
"""In each layout."""
STEPS = 10
_WORKER = Path(__file__).with_name("fault_worker.py")
# name → parallel section, processes. Dropout is on in all.
LAYOUTS = {
    "DP2, distributed optimizer": ({"distributed_optimizer": True}, 2),
    "PP2": ({"pipeline": 2}, 2),
    "TP2, sequence parallel": ({"tensor": 2, "sequence": True}, 2),
    "CP2": ({"context": 2}, 2),
    "TP2 x PP2": ({"tensor": 2, "pipeline": 2}, 4),
}
# point of fault_worker.py → calls among which one is drawn: of 10 steps and 5 saves of dozens of chunks each.
_MOMENTS = {
    "join": 1,
    "attempt, main": 1,
    "load": 1,
    "step begins": 5,
    "update": 5,
    "step ended": 5,
    "log line, main": 6,
    "snapshot": 2,
    "chunk": 30,
    "verify": 2,
    "shard": 2,
    "whole": 1,
    "whole written": 1,
    "record, main": 2,
    "record written, main": 2,
    "rename, main": 2,
    "renamed, main": 2,
    "discard, main": 1,
}
_OTHERS = {"rewind planned, main", "given up, main", "step logged, main"}
"""Points that other tests kill at; two of them lie in a rewind, which these runs do not make."""


@dataclass(frozen=True)
class Trainer:
    """Runs of one layout, in one folder each."""

    layout: str
    corpus: Path
    faulty: SimpleNamespace

    @property
    def nproc(self) -> int:
        return LAYOUTS[self.layout][1]

    def write_run(self, folder: Path) -> Path:
        return self.faulty.write_run(
            folder,
            self.corpus,
            steps=STEPS,
            model={"hidden_dropout": 0.1, "attention_dropout": 0.1},
            stage={"learning_rate": {"shape": "linear", "peak": 0.01, "warmup_tokens": 2 * 4 * 32}},
            parallel=LAYOUTS[self.layout][0],
            validation={"every_steps": 4, "max_windows": 4},
            checkpoint={"every_steps": 2, "keep": 2},
        )

    def start(self, run_file: Path, *faults: dict) -> subprocess.CompletedProcess[str]:
        """One start of the command; every start of a run is this same command."""
        return self.faulty.train(run_file, *faults, ranks=self.nproc)

    def finish(self, run_file: Path) -> subprocess.CompletedProcess[str]:
        result = self.start(run_file)
        assert result.returncode == 0, result.stderr
        return result


@pytest.fixture(scope="module")
def trainer(corpus: Path, faulty: SimpleNamespace) -> Callable[[str], Trainer]:
    return lambda layout: Trainer(layout, corpus, faulty)


def outcome(run_file: Path) -> dict:
    """All that two runs of one config must share, in full digits: losses, norms, ledger, weights, moments."""
    run = run_file.parent / "run"
    digits = ("kind", "step", "loss", "grad_norm", "learning_rate", "tokens", "source", "bits_per_byte")
    log = [{key: line[key] for key in digits if key in line} for line in read_log(run) if line["kind"] in ("step", "validation")]
    final = run / "checkpoints" / f"step-{STEPS:08d}"
    files = sorted([*(final / "weights").iterdir(), final / "ledger.json"])
    return {"log": log, "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}


def assert_same(run_file: Path, reference: dict) -> None:
    found = outcome(run_file)
    assert found["log"] == reference["log"]
    assert found["files"] == reference["files"]
    left = [path.name for path in (run_file.parent / "run" / "checkpoints").iterdir() if path.name.endswith(".tmp")]
    assert left == []


def moments(draw: random.Random, nproc: int) -> Iterator[dict]:
    """Faults without end; every point comes before one comes again."""
    while True:
        for point in draw.sample(sorted(_MOMENTS), len(_MOMENTS)):
            rank = 0 if point.endswith(", main") else draw.randrange(nproc)
            what = draw.choices(["kill", "kill launcher", "tear"], [8, 2, 2])[0]
            what = "kill" if what == "tear" and rank else what  # the log is the main rank's
            yield {"point": point, "rank": rank, "call": draw.randint(1, _MOMENTS[point]), "what": what}


def disturb(trainer: Trainer, folder: Path, kills: int, seed: int, reference: dict) -> Path:
    """Kill a run `kills` times; whenever it comes to its end in between, compare it and begin anew. Returns the last one's file."""
    nproc, layout, runs, killed = trainer.nproc, trainer.layout, 0, 0
    faults = moments(random.Random(f"{seed} {layout}"), nproc)
    run_file = trainer.write_run(folder / "0")
    while killed < kills:
        assert runs < 2 * kills + 4, f"only {killed} of {kills} kills came about"
        fault = next(faults)
        result = trainer.start(run_file, fault)
        if result.returncode == 0:  # the moment did not come
            assert_same(run_file, reference)
            runs += 1
            run_file = trainer.write_run(folder / str(runs))
            continue
        killed += 1
        if fault["what"] == "kill launcher":  # which then passes nothing on of what the worker wrote last
            assert result.returncode == -9, result.stderr
        else:
            assert f"fault: {fault}" in result.stderr, result.stderr
            assert result.returncode == 1
            assert f"codemix train: rank {fault['rank']} of {nproc} (process " in result.stderr, result.stderr
            assert ") was killed by signal SIGKILL" in result.stderr
            assert "Traceback" not in result.stderr
        print(f"{layout}: {fault}", flush=True)
    return run_file


def damage_newest(trainer: Trainer, run_file: Path) -> None:
    """Alter a byte of the newest checkpoint's weights; a run without one before it, to fall back on, first trains until it has."""
    checkpoints = run_file.parent / "run" / "checkpoints"
    if len(list(checkpoints.glob("step-*"))) < 2:
        trainer.start(run_file, {"point": "renamed, main", "rank": 0, "call": 2, "what": "kill"})
    before, newest = sorted(checkpoints.glob("step-*"))[-2:]
    print(f"{trainer.layout}: {newest.name} damaged, before it {before.name}", flush=True)
    path = max((newest / "weights").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def undisturbed(trainer: Callable[[str], Trainer], shared: Callable[..., Path]) -> Callable[[str], dict]:
    """Layout → outcome of a run that nobody disturbs."""

    @cache
    def reference(layout: str) -> dict:
        mine = trainer(layout)
        folder = shared(f"undisturbed-{list(LAYOUTS).index(layout)}", lambda folder: mine.finish(mine.write_run(folder / "whole")))
        found = outcome(folder / "whole" / "run.yaml")
        assert [line["step"] for line in found["log"] if line["kind"] == "step"] == list(range(1, STEPS + 1))
        return found

    return reference


def test_every_moment_is_a_place_in_the_trainer() -> None:
    spec = importlib.util.spec_from_file_location("fault_worker", _WORKER)
    assert spec is not None and spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    assert faults.POINTS.keys() == _MOMENTS.keys() | _OTHERS
    for point in faults.POINTS:
        owner, name = faults.place(point)
        assert callable(getattr(owner, name)), point


@pytest.mark.parametrize("layout", list(LAYOUTS) if SOAK else list(LAYOUTS)[:2])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, trainer: Callable[[str], Trainer], undisturbed: Callable[[str], dict], layout: str
) -> None:
    reference, mine = undisturbed(layout), trainer(layout)
    run_file = disturb(mine, tmp_path, KILLS, SEED, reference)
    damage_newest(mine, run_file)
    result = mine.finish(run_file)
    assert "warning: " in result.stderr
    assert list((run_file.parent / "run" / "checkpoints").glob("damaged-step-*"))
    assert_same(run_file, reference)


def test_a_full_disk_and_another_start_harm_no_run(
    tmp_path: Path, trainer: Callable[[str], Trainer], undisturbed: Callable[[str], dict]
) -> None:
    layout = next(iter(LAYOUTS))
    mine = trainer(layout)
    run_file = mine.write_run(tmp_path / "run")
    run = run_file.parent / "run"

    # One of two ranks can write nothing: training goes on, and only the last save is worth an exit code.
    full = mine.start(run_file, {"point": "verify", "rank": 1, "call": 0, "what": "full disk"})
    assert full.returncode == 1, full.stderr
    said = [line for line in full.stderr.splitlines() if line.startswith("codemix train: ")]
    assert len(said) == 1, full.stderr
    assert f"step {STEPS} could not be saved (rank 1: No space left on device" in said[0]
    assert "make room" in said[0]
    assert "Traceback" not in full.stderr
    assert len([line for line in read_log(run) if line["kind"] == "step"]) == STEPS
    assert list((run / "checkpoints").glob("step-*")) == []

    # Another start takes the folder while this one trains: all ranks leave, having published nothing since.
    usurped = mine.start(run_file, {"point": "step begins", "rank": 0, "call": 5, "what": "usurp"})
    assert usurped.returncode == 2, usurped.stderr
    said = [line for line in usurped.stderr.splitlines() if line.startswith("codemix train: ")]
    assert len(said) == 1, usurped.stderr
    assert "another process has taken this folder over" in said[0]

    mine.finish(run_file)
    assert_same(run_file, undisturbed(layout))
