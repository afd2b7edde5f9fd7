"""The checkpoint store: round trip, kill at every file operation, damage, other formats, what is kept."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from megatron_codemix.checkpoint import Checkpoint, last_attempt, newest, prepare_store, resume_point, step_folders
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import KINDS, PieceReader

WEIGHTS = "rank-00000-of-00001.safetensors"


def test_round_trip(tmp_path, kit):
    folder = kit.save(tmp_path, 100, attempt=3)
    assert folder == tmp_path / "checkpoints" / "step-00000100"
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint == Checkpoint.open(folder)
    assert checkpoint.step == 100
    record = checkpoint.record
    assert (record.attempt, record.form, record.revision, record.layout.words()) == (3, "routine", "abc", "one process")
    assert record.cursors == {"code": 200}
    assert record.padded_vocab_size == 384
    assert checkpoint.config() == kit.config(tmp_path)
    assert checkpoint.ledger() == {"code": {"windows": 200}}
    assert checkpoint.lineage() == {"plan": "planhash"}
    assert checkpoint.tokenizer.read_bytes() == b"a model"
    assert set(record.files) == {"config.yaml", "ledger.json", "lineage.json", "tokenizer.model", f"weights/{WEIGHTS}"}
    reader = PieceReader(checkpoint.weights)
    assert reader.step == 100
    for key in kit.shapes:
        for kind in KINDS:
            assert (reader.whole(key, kind) == kit.whole(key, kind, 100)).all()


def test_only_the_newest_are_kept(tmp_path, kit):
    for step in (1, 2, 3, 10):
        kit.save(tmp_path, step, keep=2)
    assert kit.names(tmp_path) == ["step-00000003", "step-00000010"]
    assert Checkpoint.open(tmp_path).step == 10


def test_a_damaged_later_folder_does_not_push_the_new_one_out(tmp_path, kit):
    (kit.save(tmp_path, 20) / "config.yaml").write_text("altered")
    kit.save(tmp_path, 15, keep=1)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 15


WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}


def killed_at(kit, event: int, run_folder: Path, step: int, form: str, attempt: int = 0) -> bool:
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
            kit.save(run_folder, step, keep=1, form=form, attempt=attempt)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("form", ["routine", pytest.param("neutral", marks=pytest.mark.slow)])
def test_killed_at_every_file_operation_the_newest_is_always_whole(tmp_path, capsys, kit, form):
    """Before the rename the previous one is the newest; after it the new one; never anything else, and never a warning."""
    event, seen = 0, set()
    for event in range(1, 500):
        run_folder = tmp_path / str(event)
        kit.save(run_folder, 1, keep=1)
        killed = killed_at(kit, event, run_folder, 2, form)
        found = newest(run_folder)
        assert found is not None
        seen.add((killed, found.step))
        if not killed:
            break
        assert all(name.startswith("step-") or (name.startswith(".step-") and name.endswith(".tmp")) for name in kit.names(run_folder))
        kit.save(run_folder, 3, keep=1)  # the next start clears what was left
        assert kit.names(run_folder) == ["step-00000003"]
    assert event > 20
    assert seen == {(True, 1), (True, 2), (False, 2)}
    assert "warning" not in capsys.readouterr().err


def test_killed_while_it_replaces_a_checkpoint_of_the_same_step_one_of_the_two_is_there_at_the_next_start(tmp_path, kit):
    """A process that was cut off had published this step and, with keep=1, deleted all others."""
    event, seen = 0, set()
    for event in range(1, 500):
        run_folder = tmp_path / str(event)
        kit.save(run_folder, 5, keep=1, attempt=0)
        killed = killed_at(kit, event, run_folder, 5, "routine", attempt=1)
        prepare_store(run_folder)
        found = newest(run_folder)
        assert found is not None and found.step == 5, event
        assert kit.names(run_folder) == ["step-00000005"]
        seen.add((killed, found.record.attempt))
        if not killed:
            break
    assert event > 20
    assert seen == {(True, 0), (True, 1), (False, 1)}


def damages():
    def truncate(folder):
        os.truncate(folder / "weights" / WEIGHTS, 999)

    def alter(folder):
        path = folder / "weights" / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    def remove(folder):
        (folder / "ledger.json").unlink()

    def record(folder):
        (folder / "checkpoint.json").write_text('{"format_version": 2, "step"')

    def field(folder):
        raw = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**raw, "step": "ten"}))

    def gone(folder):
        (folder / "checkpoint.json").unlink()

    def outside(folder):
        raw = json.loads((folder / "checkpoint.json").read_text())
        raw["files"]["../../../etc/passwd"] = {"size": 1, "sha256": "0"}
        (folder / "checkpoint.json").write_text(json.dumps(raw))

    def foreign(folder):
        (folder / "weights" / "rank-00001-of-00001.safetensors").write_bytes(b"from elsewhere")

    return [
        (foreign, "rank-00001-of-00001.safetensors: not a file of this checkpoint"),
        (truncate, r"rank-00000-of-00001\.safetensors: 999 bytes where \d+ were written"),
        (alter, r"rank-00000-of-00001\.safetensors: altered"),
        (remove, r"ledger\.json: missing"),
        (record, "checkpoint record cannot be read"),
        (field, "'step' is wrong"),
        (gone, r"not a checkpoint \(it has no checkpoint\.json\)"),
        (outside, r"names a file outside the checkpoint"),
    ]


@pytest.mark.parametrize("damage, message", damages())
def test_damage_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, message, kit):
    kit.save(tmp_path, 1)
    folder = kit.save(tmp_path, 2)
    damage(folder)
    with pytest.raises(UserError, match=message):
        Checkpoint.open(folder)
    assert Checkpoint.open(tmp_path).step == 1
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {folder}")
    assert warning.count("\n") == 1


def test_a_checkpoint_under_another_steps_name_does_not_stand_in_the_way(tmp_path, kit):
    shutil.copytree(kit.save(tmp_path, 1), tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(UserError, match="holds the checkpoint of step 1"):
        Checkpoint.open(tmp_path / "checkpoints" / "step-00000002")
    found = resume_point(tmp_path, kit.Alone())
    assert found is not None
    assert found.step == 1
    assert Checkpoint.open(kit.save(tmp_path, 2)).step == 2


def test_a_flipped_bit_passes_only_when_contents_are_not_asked_for(tmp_path, kit):
    folder = kit.save(tmp_path, 1)
    damages()[2][0](folder)
    assert Checkpoint.open(folder, contents=False).step == 1


def test_when_every_checkpoint_is_damaged_nothing_starts_anew(tmp_path, kit):
    for step in (1, 2):
        (kit.save(tmp_path, step) / "ledger.json").unlink()
    with pytest.raises(UserError, match="no checkpoint in it is whole"):
        newest(tmp_path)


def test_resuming_sets_damaged_ones_aside_so_their_steps_can_be_saved_again(tmp_path, capsys, kit):
    kit.save(tmp_path, 1)
    (kit.save(tmp_path, 2) / "ledger.json").unlink()
    found = resume_point(tmp_path, kit.Alone())
    assert found is not None
    assert found.step == 1
    assert kit.names(tmp_path) == ["damaged-step-00000002", "step-00000001"]
    assert "set aside as damaged-step-00000002" in capsys.readouterr().err
    assert Checkpoint.open(kit.save(tmp_path, 2)).step == 2


@pytest.mark.parametrize("version", [1, 7])
def test_another_format_version_is_refused_by_name_and_never_skipped(tmp_path, kit, version):
    kit.save(tmp_path, 1)
    path = kit.save(tmp_path, 2) / "checkpoint.json"
    path.write_text(path.read_text().replace('"format_version": 2', f'"format_version": {version}'))
    for place in (path.parent, tmp_path):
        with pytest.raises(UserError, match=f"format_version {version}, but this codemix reads 2"):
            Checkpoint.open(place)


def test_what_is_not_there_is_said(tmp_path, kit):
    assert newest(tmp_path) is None
    assert step_folders(tmp_path) == []
    with pytest.raises(UserError, match="no such checkpoint"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a checkpoint"):
        Checkpoint.open(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        Checkpoint.open(tmp_path)


def test_a_checkpoint_of_another_model_names_each_field(tmp_path, kit):
    kit.save(tmp_path, 1)
    checkpoint = Checkpoint.open(tmp_path)
    mine = kit.config(tmp_path).model
    checkpoint.expect(mine, 300, checkpoint.record.tokenizer_fingerprint)
    with pytest.raises(UserError) as caught:
        checkpoint.expect(kit.config(tmp_path, hidden_size=12, num_layers=3).model, 301, "f" * 64)
    text = str(caught.value)
    for part in ("model.hidden_size: 12 now, 8 in", "model.num_layers: 3 now, 2 in", "vocab_size: 301 now, 300 in", "another tokenizer"):
        assert part in text
    assert all("\n" not in problem for problem in caught.value.problems)


def test_a_start_sweeps_away_what_was_left_and_nothing_else(tmp_path, kit):
    kit.save(tmp_path, 1)
    store = tmp_path / "checkpoints"
    for name in (".step-00000002.attempt-0.tmp", ".step-00000001.deleted.tmp"):
        (store / name / "weights").mkdir(parents=True)
    for name in ("damaged-step-00000003", ".mine"):
        (store / name).mkdir()
    prepare_store(tmp_path)
    assert kit.names(tmp_path) == [".mine", "damaged-step-00000003", "step-00000001"]


def test_a_file_where_the_checkpoints_belong_is_said_in_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(UserError, match="a file where the folder of checkpoints belongs") as caught:
        prepare_store(tmp_path)
    assert len(caught.value.problems) == 1
    assert (tmp_path / "checkpoints").read_text() == "not a folder"


def test_the_last_attempt_is_known_from_the_checkpoints_too(tmp_path, kit):
    assert last_attempt(tmp_path) == -1
    kit.save(tmp_path, 1, attempt=4)
    (kit.save(tmp_path, 2, attempt=6) / "checkpoint.json").write_text("{")
    assert last_attempt(tmp_path) == 4
