"""Weights & Biases: what it is sent, and that nothing it does or lacks ends a run. The package itself is not needed."""

from __future__ import annotations

import sys

import pytest

from megatron_codemix.config import LoggingConfig, WandbConfig
from megatron_codemix.train.board import Board
from megatron_codemix.train.weights_and_biases import WandbRun

SETTINGS = WandbConfig(project="mixtures", group="trial")


class Service:
    """Stands for the package: records what it is told, or fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.begun, self.sent, self.metrics, self.finished = fails, {}, [], [], False

    def init(self, **arguments):
        self._may_fail("init")
        self.begun = arguments
        return self

    def Settings(self, **arguments):
        return arguments

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self._may_fail("log")
        self.sent.append(values)

    def finish(self):
        self._may_fail("finish")
        self.finished = True

    def _may_fail(self, place):
        if self.fails == place:
            raise RuntimeError("no network\nand many lines of why")


@pytest.fixture
def service(monkeypatch):
    def install(fails: str = "") -> Service:
        made = Service(fails)
        monkeypatch.setitem(sys.modules, "wandb", made)
        return made

    return install


def test_it_is_sent_what_is_drawn(service, tmp_path):
    told = service()
    board = Board(tmp_path / "run", LoggingConfig(tensorboard=False, wandb=SETTINGS), "tiny", first_step=0)
    board.scalars("train", 3, {"loss": 2.5, "mfu": None})
    board.begin(first_step=1)
    board.scalars("train", 2, {"loss": 2.75})
    board.flush()
    board.close()
    assert told.sent == [{"step": 3, "train/loss": 2.5}, {"step": 2, "train/loss": 2.75}]
    assert told.finished
    assert told.metrics == [("step", None), ("*", "step")]
    assert {key: told.begun[key] for key in ("project", "group", "entity", "mode", "name", "resume")} == {
        "project": "mixtures", "group": "trial", "entity": None, "mode": "online", "name": "tiny", "resume": "allow",
    }  # fmt: skip
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_restart_goes_on_in_the_same_run_and_another_folder_is_another(service, tmp_path):
    told, ids = service(), []
    for folder in ("run", "run", "other"):
        assert WandbRun.open(SETTINGS, tmp_path / folder, "tiny") is not None
        ids.append(told.begun["id"])
    assert ids[0] == ids[1] != ids[2]


def test_without_the_package_training_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert WandbRun.open(SETTINGS, tmp_path, "tiny") is None
    assert "the package is not installed; `pip install wandb`" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_what_it_raises_is_one_warning(service, tmp_path, capsys, place):
    told = service(fails=place)
    run = WandbRun.open(SETTINGS, tmp_path, "tiny")
    assert (run is None) == (place == "init")
    if run:
        for step in range(3):
            run.log(step, {"loss": 1.0})
        run.close()
    shown = capsys.readouterr().err
    assert shown.count("warning: logging.wandb: no network;") == 1
    assert shown.count("\n") == 1
    assert len(told.sent) == (3 if place == "finish" else 0)


def test_without_the_line_in_the_config_nobody_is_asked(service, tmp_path):
    told = service()
    Board(tmp_path / "run", LoggingConfig(tensorboard=False), "tiny", first_step=0).close()
    assert told.begun == {}
    assert told.sent == []
