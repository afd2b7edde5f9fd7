"""RUN/finished.json says that nothing is left to do, as long as that is so; a file may ask to stop in the place of a signal."""

import json
import signal
from pathlib import Path

import pytest

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.errors import JobError
from megatron_codemix.slurm.site import NodeStorage, SiteConfig
from megatron_codemix.slurm.submit import Request, training_job
from megatron_codemix.train import read_log
from megatron_codemix.train.marker import FINISHED_NAME, mark_finished
from megatron_codemix.train.recorder import Recorder
from megatron_codemix.train.stopping import STOP_FILE, StopRequest

STEPS = 12


def ask_behind(monkeypatch, step: int, path: Path) -> None:
    original = Recorder.step

    def step_and_ask(self, done, *arguments):
        original(self, done, *arguments)
        if done == step:
            path.write_text("")

    monkeypatch.setattr(Recorder, "step", step_and_ask)


def test_the_marker_says_what_was_finished(reference, tiny):
    marker = json.loads((reference / FINISHED_NAME).read_text())
    end = read_log(reference)[-1]
    assert marker.pop("time") >= end["time"]
    plan = Checkpoint.open(reference).record.plan
    tokens = STEPS * tiny.batch * tiny.sequence
    assert marker == {"format_version": 1, "name": "tiny", "step": STEPS, "tokens": tokens, "attempt": 0, "plan": plan}


def test_a_stop_file_stops_like_a_signal_and_the_run_ends_bit_identically(run_file, reference, monkeypatch, capsys, tmp_path, tiny):
    run_folder, stop = run_file.parent / "run", tmp_path / "stop.7.0"
    with monkeypatch.context() as patched:
        patched.setenv(STOP_FILE, str(stop))
        ask_behind(patched, 4, stop)
        assert tiny.train(run_file) == 75
    said = capsys.readouterr()
    assert said.err.count(f"{stop}: finishing this step, then saving and leaving") == 1
    assert Checkpoint.open(run_folder).step == 4
    assert not (run_folder / FINISHED_NAME).exists()
    with monkeypatch.context() as patched:
        patched.setenv(STOP_FILE, str(tmp_path / "stop.7.1"))  # the next start has a file of its own
        assert tiny.train(run_file) == 0
    assert (run_folder / FINISHED_NAME).is_file()
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)


def test_a_stop_file_that_comes_at_the_last_step_changes_nothing(run_file, monkeypatch, tmp_path, tiny):
    with monkeypatch.context() as patched:
        patched.setenv(STOP_FILE, str(tmp_path / "stop"))
        ask_behind(patched, STEPS, tmp_path / "stop")
        assert tiny.train(run_file) == 0
    assert (run_file.parent / "run" / FINISHED_NAME).is_file()


def test_a_lost_marker_comes_back_and_a_longer_run_withdraws_it(run_file, monkeypatch, tmp_path, tiny):
    run_folder = run_file.parent / "run"
    assert tiny.train(run_file) == 0
    marker = json.loads((run_folder / FINISHED_NAME).read_text())
    (run_folder / FINISHED_NAME).unlink()
    assert tiny.train(run_file) == 0  # finished already
    again = json.loads((run_folder / FINISHED_NAME).read_text())
    assert again | {"time": 0} == marker | {"time": 0}

    longer = f"stages.1.tokens={6 * tiny.batch * tiny.sequence}"
    assert tiny.train(run_file, longer) == 2  # refused without --accept-changes: nothing is withdrawn
    assert (run_folder / FINISHED_NAME).is_file()
    with monkeypatch.context() as patched:
        patched.setenv(STOP_FILE, str(tmp_path / "stop"))
        ask_behind(patched, STEPS + 1, tmp_path / "stop")
        assert tiny.train(run_file, longer, "--accept-changes") == 75
    assert not (run_folder / FINISHED_NAME).exists()
    assert tiny.train(run_file, longer, "--accept-changes") == 0
    assert json.loads((run_folder / FINISHED_NAME).read_text())["step"] == STEPS + 2


def test_a_full_disk_says_what_is_left_to_do(tmp_path, monkeypatch):
    facts = {"name": "a", "step": 1, "tokens": 2, "plan": "p", "attempt": 0}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_codemix.train.marker.write_json", full)
    with pytest.raises(JobError, match=r"finished, but finished.json cannot be written \(No space left on device\); make room"):
        mark_finished(tmp_path, **facts)


def test_the_main_process_alone_looks_for_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "stop"
    monkeypatch.setenv(STOP_FILE, str(path))
    main, other = StopRequest(), StopRequest()
    assert not main.look()
    path.write_text("")
    monkeypatch.setenv("RANK", "1")
    assert not other.look()
    monkeypatch.setenv("RANK", "0")
    assert main.look() and main.requested
    assert main.look()
    assert capsys.readouterr().err.count("finishing this step") == 1
    monkeypatch.delenv(STOP_FILE)
    assert not StopRequest().look()


def test_a_signal_is_seen_by_a_look_too():
    with StopRequest() as stop:
        assert not stop.look()
        signal.raise_signal(signal.SIGUSR1)
        assert stop.look()


def test_shards_that_a_job_brings_to_its_node_give_the_same_run(run_file, reference, tmp_path, tiny):
    """`node_storage` of a site file: the words of the job, with what launch_scripts/node_entry.sh adds on the node."""
    site = SiteConfig(node_storage=NodeStorage(folder="/local/$SLURM_JOB_ID", bytes=10**8))
    _, job = training_job(Request(run_file), site)
    words = job.facts["overrides"]
    assert isinstance(words, list)
    assert tiny.train(run_file, *words, f"data.cache.folder={tmp_path / 'local' / '7'}") == 0
    run_folder = run_file.parent / "run"
    assert tiny.figures(run_folder) == tiny.figures(reference)
    assert tiny.final_state(run_folder) == tiny.final_state(reference)
    assert len(list((tmp_path / "local" / "7" / "shards").glob("*.tar"))) >= 4  # of two sources and their validation splits
