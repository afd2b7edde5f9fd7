"""A run that reads through a cache, in blocks: resumes bit for bit, several ranks by shard, a ledger that the audit agrees with."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_codemix.cli import main
from megatron_codemix.train import read_log
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE

SETTINGS = ["data.order=blocks", "data.block_shards=1"]


def stored(corpus, cache) -> list[str]:
    addresses = [f"sources.{name}.path=file://{corpus / name}" for name in ("code", "text")]
    return [*SETTINGS, *addresses, f"data.cache.folder={cache}", "data.cache.bytes=1e8"]


def losses(run_folder) -> list[float]:
    return [line["loss"] for line in read_log(run_folder) if line["kind"] == "step"]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory, tiny) -> Path:
    """A run in blocks, from the folders themselves, in one process."""
    folder = tmp_path_factory.mktemp("plain")
    path = tiny.write_run_file(corpus, folder)
    assert tiny.train(path, *SETTINGS) == 0
    return folder / "run"


def test_a_store_gives_the_same_run_and_a_restart_goes_on_with_its_cache(corpus, run_file, tmp_path, plain, tiny, monkeypatch, capsys):
    settings = stored(corpus, tmp_path / "cache")
    original = Recorder.step

    def step_and_stop(self, done, *arguments):
        original(self, done, *arguments)
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "step", step_and_stop)
        assert tiny.train(run_file, *settings) == STOPPED_EXIT_CODE
    cached = {path.name for path in (tmp_path / "cache" / "shards").iterdir()}
    assert cached
    assert tiny.train(run_file, *settings) == 0
    assert tiny.final_state(tmp_path / "run")[1:] == tiny.final_state(plain)[1:]
    assert main(["audit", str(tmp_path / "run")]) == 0
    assert "agreed" in capsys.readouterr().out
    assert main(["check", str(run_file), *settings]) == 0
    assert "reading           order blocks" in capsys.readouterr().out


def test_two_ranks_by_shard_share_a_cache_and_train_the_same(corpus, run_file, tmp_path, plain):
    settings = [*stored(corpus, tmp_path / "cache"), "data.assignment=shard", "micro_batch_size=1"]
    command = [sys.executable, "-m", "megatron_codemix.cli", "train", str(run_file), "--nproc", "2", "--", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-5)
    assert main(["audit", str(tmp_path / "run")]) == 0
