"""Room for checkpoints: how many lie there at once, checked against the real rule of retention; a disk that is too small."""

import shutil
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.checkpoint.retention import doomed
from megatron_codemix.cli import main
from megatron_codemix.config import CheckpointConfig, RunConfig
from megatron_codemix.train import space
from megatron_codemix.train.space import checkpoint_bytes, lack_of_space, most_at_once


def run(folder=None, **checkpoint) -> RunConfig:
    model = SimpleNamespace(num_parameters=lambda rows: 1000 * rows)
    return cast(RunConfig, SimpleNamespace(output=folder, model=model, checkpoint=CheckpointConfig(**checkpoint)))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(0, 9),
    st.lists(st.integers(1, 45), max_size=4),
    st.sampled_from(["neutral", "routine"]),
)
def test_as_many_as_the_saves_of_a_run_leave_there(num_steps, every, keep, keep_every, keep_steps, form):
    there: set[int] = set()
    most = 0
    for step in range(1, num_steps + 1):
        last = step == num_steps
        if last or (every and step % every == 0) or step in keep_steps:
            most = max(most, len(there) + (2 if last and form == "neutral" else 1))
            there |= {step}
            there -= set(doomed(there, step, keep, keep_every, keep_steps))
    config = run(every_steps=every, keep=keep, keep_every_steps=keep_every, keep_steps=keep_steps, final_form=form)
    assert most_at_once(config, num_steps) == most


def test_a_small_disk_is_said_once_and_what_lies_there_counts(tmp_path, monkeypatch):
    config = run(tmp_path / "run" / "of" / "mine", every_steps=2, keep=2, final_form="neutral")
    assert checkpoint_bytes(config, 100) == 1_200_000
    free = 4 * 1_200_000

    def usage(path):
        assert path.exists()
        return SimpleNamespace(free=free)

    monkeypatch.setattr(space.shutil, "disk_usage", usage)
    assert lack_of_space(config, 10, 100) is None
    free -= 1
    said = lack_of_space(config, 10, 100)
    assert said is not None and "4.578 MiB free, but its checkpoints take up to 4.578 MiB: make room" in said
    assert "checkpoint.final_form=routine" in said
    weights = config.output / "checkpoints" / "step-00000002" / "weights"
    weights.mkdir(parents=True)
    (weights / "file").write_bytes(b"1")
    assert lack_of_space(config, 10, 100) is None


def test_a_disk_that_does_not_say_is_no_reason_to_warn(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert lack_of_space(run(tmp_path), 10, 100) is None


def test_check_and_train_say_it(run_file, capsys, monkeypatch, tiny):
    from_disk = shutil.disk_usage(run_file)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: from_disk._replace(free=1000))
    assert main(["check", str(run_file)]) == 0
    shown = capsys.readouterr().out
    assert "each, up to" in shown and "warning: " in shown and "1000 B free" in shown
    assert tiny.train(run_file, "checkpoint.every_steps=0", "validation.every_steps=0") == 0
    assert capsys.readouterr().err.count("1000 B free, but its checkpoints take up to") == 1


@pytest.mark.parametrize("number, words", [(1000, "1000 B"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")])
def test_sizes_in_words(number, words):
    assert space.size_words(number) == words
