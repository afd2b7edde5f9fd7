"""The checkpoint store with a fake engine: round trip, kill at every write, damage, other formats, retention."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from megatron_codemix.checkpoint.store import Checkpoint, State, newest, publish, resume_point, step_folders
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.errors import UserError


class Alone:
    """The ranks of a run of one process."""

    is_main = True

    def barrier(self):
        pass

    def broadcast(self, value):
        return value


def config(run_folder: Path, **model) -> RunConfig:
    shape = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 16, **model}
    raw = {
        "name": "tiny",
        "output": str(run_folder),
        "tokenizer": "tokenizer",
        "sources": {"code": {"path": "code"}},
        "model": shape,
        "stages": [
            {
                "name": "only",
                "tokens": 1024,
                "mixture": {"code": 1.0},
                "batch_size": 2,
                "sequence_length": 16,
                "learning_rate": {"shape": "constant", "peak": 0.1},
            }
        ],
    }
    return parse_config(raw, RunConfig, "test")


def state(run_folder: Path, step: int) -> State:
    return State(
        step=step,
        config=config(run_folder),
        vocab_size=300,
        tokenizer_model=b"a model",
        plan="planhash",
        cursors={"code": step * 2},
        ledger={"code": {"windows": step * 2}},
        lineage={"plan": "planhash"},
    )


def weights(content: bytes):
    def save(folder: Path) -> None:
        (folder / "part-0.bin").write_bytes(content)
        (folder / "metadata").write_bytes(b"meta")

    return save


def save(run_folder: Path, step: int, keep: int = 9, content: bytes = b"w" * 1000) -> Path:
    return publish(run_folder, state(run_folder, step), weights(content), keep, Alone())


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def test_round_trip(tmp_path):
    folder = save(tmp_path, 100)
    assert folder == tmp_path / "checkpoints" / "step-00000100"
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint == Checkpoint.open(folder)
    assert checkpoint.step == 100
    assert checkpoint.record.cursors == {"code": 200}
    assert checkpoint.record.padded_vocab_size == 384
    assert checkpoint.config() == config(tmp_path)
    assert checkpoint.ledger() == {"code": {"windows": 200}}
    assert checkpoint.lineage() == {"plan": "planhash"}
    assert checkpoint.tokenizer.read_bytes() == b"a model"
    assert (checkpoint.weights / "part-0.bin").read_bytes() == b"w" * 1000
    listed = {"config.yaml", "ledger.json", "lineage.json", "tokenizer.model", "weights/metadata", "weights/part-0.bin"}
    assert set(checkpoint.record.files) == listed


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]
    assert Checkpoint.open(tmp_path).step == 10


def test_a_damaged_later_folder_does_not_push_the_new_one_out(tmp_path):
    (save(tmp_path, 20) / "config.yaml").write_text("altered")
    save(tmp_path, 15, keep=1)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 15


def test_a_step_is_never_published_twice(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(FileExistsError):
        save(tmp_path, 1)
    assert Checkpoint.open(tmp_path).step == 1


def test_a_failing_save_leaves_no_trace(tmp_path):
    save(tmp_path, 1)

    def broken(folder: Path) -> None:
        weights(b"half")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path, state(tmp_path, 2), broken, 1, Alone())
    assert names(tmp_path) == ["step-00000001"]


WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def killed_at(event: int, run_folder: Path, step: int) -> bool:
    """Publish in a child that is killed with signal 9 just before its `event`-th file operation; False when it had none."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(name, arguments):
            nonlocal seen
            if name in WRITES and str(run_folder) in str(arguments):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            save(run_folder, step, keep=1, content=b"v" * 500)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_every_file_operation_the_newest_is_always_whole(tmp_path, capsys):
    """Before the rename the previous one is the newest; after it the new one; never anything else, and never a warning."""
    event, seen = 0, set()
    for event in range(1, 500):
        run_folder = tmp_path / str(event)
        save(run_folder, 1, keep=1)
        killed = killed_at(event, run_folder, 2)
        found = newest(run_folder)
        assert found is not None
        seen.add((killed, found.step))
        if not killed:
            break
        save(run_folder, 3, keep=1)  # the next save clears what was left
        assert names(run_folder) == ["step-00000003"]
    assert event > 20
    assert seen == {(True, 1), (True, 2), (False, 2)}
    assert "warning" not in capsys.readouterr().err


def damages():
    def truncate(folder):
        os.truncate(folder / "weights" / "part-0.bin", 999)

    def alter(folder):
        path = folder / "weights" / "part-0.bin"
        path.write_bytes(b"W" + path.read_bytes()[1:])

    def remove(folder):
        (folder / "ledger.json").unlink()

    def record(folder):
        (folder / "checkpoint.json").write_text('{"format_version": 1, "step"')

    def field(folder):
        raw = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**raw, "step": "ten"}))

    def gone(folder):
        (folder / "checkpoint.json").unlink()

    def outside(folder):
        raw = json.loads((folder / "checkpoint.json").read_text())
        raw["files"]["../../../etc/passwd"] = {"size": 1, "sha256": "0"}
        (folder / "checkpoint.json").write_text(json.dumps(raw))

    return [
        (truncate, r"part-0\.bin: 999 bytes where 1000 were written"),
        (alter, r"part-0\.bin: altered"),
        (remove, r"ledger\.json: missing"),
        (record, "checkpoint record cannot be read"),
        (field, "'step' is missing or wrong"),
        (gone, r"not a checkpoint \(it has no checkpoint\.json\)"),
        (outside, r"names a file outside the checkpoint"),
    ]


@pytest.mark.parametrize("damage, message", damages())
def test_damage_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, message):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    damage(folder)
    with pytest.raises(UserError, match=message):
        Checkpoint.open(folder)
    assert Checkpoint.open(tmp_path).step == 1
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {folder}")
    assert warning.count("\n") == 1


def test_a_checkpoint_under_another_steps_name_does_not_stand_in_the_way(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(UserError, match="holds the checkpoint of step 1"):
        Checkpoint.open(tmp_path / "checkpoints" / "step-00000002")
    found = resume_point(tmp_path)
    assert found is not None
    assert found.step == 1
    assert Checkpoint.open(save(tmp_path, 2)).step == 2


def test_a_flipped_bit_passes_only_when_contents_are_not_asked_for(tmp_path):
    folder = save(tmp_path, 1)
    damages()[1][0](folder)
    assert Checkpoint.open(folder, contents=False).step == 1


def test_when_every_checkpoint_is_damaged_nothing_starts_anew(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "ledger.json").unlink()
    with pytest.raises(UserError, match="no checkpoint in it is whole"):
        newest(tmp_path)


def test_resuming_sets_damaged_ones_aside_so_their_steps_can_be_saved_again(tmp_path, capsys):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "ledger.json").unlink()
    found = resume_point(tmp_path)
    assert found is not None
    assert found.step == 1
    assert names(tmp_path) == ["damaged-step-00000002", "step-00000001"]
    assert "set aside as damaged-step-00000002" in capsys.readouterr().err
    assert Checkpoint.open(save(tmp_path, 2)).step == 2


def test_another_format_version_is_refused_by_name_and_never_skipped(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "checkpoint.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    for place in (path.parent, tmp_path):
        with pytest.raises(UserError, match="format_version 7, but this codemix reads 1"):
            Checkpoint.open(place)


def test_what_is_not_there_is_said(tmp_path):
    assert newest(tmp_path) is None
    assert step_folders(tmp_path) == []
    with pytest.raises(UserError, match="no such checkpoint"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoint.open(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        Checkpoint.open(tmp_path)


def test_a_checkpoint_of_another_model_names_each_field(tmp_path):
    save(tmp_path, 1)
    checkpoint = Checkpoint.open(tmp_path)
    mine = config(tmp_path).model
    checkpoint.expect(mine, 300, checkpoint.record.tokenizer_fingerprint)
    with pytest.raises(UserError) as caught:
        checkpoint.expect(config(tmp_path, hidden_size=12, num_layers=3).model, 301, "f" * 64)
    text = str(caught.value)
    for part in ("model.hidden_size: 12 now, 8 in", "model.num_layers: 3 now, 2 in", "vocab_size: 301 now, 300 in", "another tokenizer"):
        assert part in text
    assert all("\n" not in problem for problem in caught.value.problems)
