"""What a save makes of disks that are full, slow, sick or odd, of states with holes, and of two starts that cannot see each other."""

import errno
import os
import shutil
import threading
import time

import pytest
import torch

from megatron_codemix import files
from megatron_codemix.checkpoint import NEUTRAL, ROUTINE, Checkpoint, Superseded, phases, prepare_store, publish, store
from megatron_codemix.checkpoint.publish import Dropped, Saved, Saver
from megatron_codemix.config import CheckpointConfig
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import EXP_AVG, KINDS, Block, Piece, PieceReader
from megatron_codemix.pieces import files as piece_files

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def saver(folder, ranks, require=lambda: None, keep=9) -> Saver:
    prepare_store(folder)
    return Saver(folder, CheckpointConfig(keep=keep), ranks, require)


def refuse(*arguments, **keywords):
    raise FULL


@pytest.mark.parametrize("refusing", [0, 1])
def test_no_room_for_the_neutral_form_leaves_the_routine_one_and_all_that_was_there(tmp_path, kit, monkeypatch, refusing):
    kit.save(tmp_path, 1)
    original = publish.write_whole

    def full(*arguments):
        written = original(*arguments)  # some of it is there when the disk refuses
        if arguments[3] == refusing:
            raise FULL
        return written

    monkeypatch.setattr(publish, "write_whole", full)

    def work(ranks):
        mine = Saver(tmp_path, CheckpointConfig(keep=1), ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2), NEUTRAL)
        return mine.finish()

    outcomes = kit.Together(2).run(work)
    assert all(isinstance(outcome, Saved) and outcome.form == ROUTINE for outcome in outcomes), outcomes
    assert f"rank {refusing}: No space left on device" in outcomes[0].warning and "codemix checkpoint reshard" in outcomes[0].warning
    assert kit.names(tmp_path) == ["step-00000001", "step-00000005"], "a disk in trouble costs no older checkpoint"
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.record.form == ROUTINE
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == sorted(
        ["checkpoint.json", "config.yaml", "ledger.json", "lineage.json", "tokenizer.model", "weights"]
    )
    reader = PieceReader(checkpoint.weights)
    assert all(torch.equal(reader.whole(key, kind), kit.whole(key, kind, 5)) for key in kit.shapes for kind in KINDS)


def test_who_waits_for_a_slow_disk_shows_signs_of_life_and_for_a_dead_one_none(tmp_path, kit, monkeypatch):
    """The rank that has long been done, too."""
    monkeypatch.setattr(publish, "_ROUND_SECONDS", 0.05)
    stands, beats = threading.Event(), [[], []]

    def slow(folder, pieces, rank, world_size, step, beat):
        if rank == 1:
            for _ in range(20):
                time.sleep(0.02)
                beat()
            stands.set()
            time.sleep(1.0)
        return phases.write_routine(folder, pieces, rank, world_size, step, beat)

    monkeypatch.setattr(publish, "write_routine", slow)
    prepare_store(tmp_path)

    def work(ranks):
        mine = Saver(tmp_path, CheckpointConfig(), ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2))
        return mine.finish(lambda: beats[ranks.rank].append(stands.is_set()))

    assert all(isinstance(outcome, Saved) for outcome in kit.Together(2).run(work))
    for of_a_rank in beats:
        assert of_a_rank.count(False) >= 3
        assert of_a_rank.count(True) <= 8, "20 rounds without a sign; then the ends of the phases"


def test_all_ranks_leave_a_dropped_save_together_when_its_files_are_gone(tmp_path, kit, monkeypatch):
    """Deleting may take minutes: a rank that left before would have the others killed."""
    remove = publish.remove_folder

    def slow(folder):
        time.sleep(0.5)
        remove(folder)

    monkeypatch.setattr(publish, "remove_folder", slow)
    monkeypatch.setattr(publish, "write_state", refuse)
    prepare_store(tmp_path)

    def work(ranks):
        mine = Saver(tmp_path, CheckpointConfig(), ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2))
        return mine.finish(), kit.names(tmp_path)

    for outcome, left in kit.Together(2).run(work):
        assert isinstance(outcome, Dropped) and left == []


def holes():
    def missing(pieces):
        return [piece for piece in pieces if piece.block.key != "decoder.final_layernorm.weight"]

    def no_moment(pieces):
        return [piece for piece in pieces if piece.kind != EXP_AVG or "linear_proj" not in piece.block.key]

    def part(pieces):
        first = pieces[0]
        return [Piece(first.block, first.kind, 0, first.stop - 1, first.data[:-1]), *pieces[1:]]

    def foreign(pieces):
        return [*pieces, Piece(Block("another", (1,), (0,), (1,)), "param", 0, 1, torch.ones(1))]

    return [
        (missing, "no 'decoder.final_layernorm.weight'"),
        (no_moment, "no exp_avg of 'decoder.layers.0.self_attention.linear_proj.weight'"),
        (part, "lacks 1 of its"),
        (foreign, "'another', which the model has not"),
    ]


@pytest.mark.parametrize("form", [ROUTINE, NEUTRAL])
@pytest.mark.parametrize("hole, message", holes())
def test_a_state_with_holes_is_never_published_and_takes_no_ones_place(tmp_path, kit, hole, message, form):
    kit.save(tmp_path, 1)
    mine = saver(tmp_path, kit.Alone(), keep=1)
    mine.begin(kit.state(tmp_path, 5), hole(kit.pieces(5)), form)
    with pytest.raises(RuntimeError, match=message):
        mine.finish()
    assert kit.names(tmp_path) == ["step-00000001"]


def test_a_file_of_somebody_else_is_never_published(tmp_path, kit, monkeypatch):
    original = publish.await_files

    def with_a_guest(folder, files):
        shutil.copy(folder / "rank-00000-of-00001.safetensors", folder / "rank-00000-of-00007.bin")
        original(folder, files)

    monkeypatch.setattr(publish, "await_files", with_a_guest)
    mine = saver(tmp_path, kit.Alone())
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    with pytest.raises(RuntimeError, match=r"file 'rank-00000-of-00007\.bin'"):
        mine.finish()


def test_two_starts_with_one_attempt_number_write_into_two_folders(tmp_path, kit):
    one, other = (saver(tmp_path, kit.Alone()) for _ in range(2))
    one.begin(kit.state(tmp_path, 5), kit.pieces(5))
    other.begin(kit.state(tmp_path, 5), kit.pieces(5))
    assert isinstance(one.finish(), Saved) and isinstance(other.finish(), Saved)
    assert kit.names(tmp_path) == ["step-00000005"]
    assert Checkpoint.open(tmp_path).step == 5


def test_what_fails_behind_the_rename_does_not_make_the_save_a_failed_one(tmp_path, kit, monkeypatch):
    kit.save(tmp_path, 1)
    original = publish.fsync_directory

    def sick(folder):
        if folder.name == "checkpoints":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(folder)

    monkeypatch.setattr(publish, "fsync_directory", sick)
    mine = saver(tmp_path, kit.Alone(), keep=1)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    outcome = mine.finish()
    assert isinstance(outcome, Saved) and outcome.warning and "nothing older was deleted" in outcome.warning
    assert kit.names(tmp_path) == ["step-00000001", "step-00000005"]


def test_who_was_replaced_during_the_rename_deletes_nothing(tmp_path, kit, monkeypatch):
    """It may be what the other one continues from."""
    kit.save(tmp_path, 1)
    renamed, original = [], Saver._rename

    def slow_rename(*arguments):
        renamed.append(True)
        return original(*arguments)

    def require():
        if renamed:
            raise Superseded.of(tmp_path)

    monkeypatch.setattr(Saver, "_rename", slow_rename)
    mine = saver(tmp_path, kit.Alone(), require, keep=1)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    with pytest.raises(UserError, match="another process has taken this folder over"):
        mine.finish()
    assert kit.names(tmp_path) == ["step-00000001", "step-00000005"]


def test_an_attempt_that_cannot_be_read_right_now_costs_the_save_and_not_the_run(tmp_path, kit):
    def require():
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    mine = saver(tmp_path, kit.Alone(), require)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    outcome = mine.finish()
    assert isinstance(outcome, Dropped) and outcome.reason == os.strerror(errno.ESTALE)


def test_no_memory_and_no_threads_are_refusals_too(tmp_path, kit, monkeypatch):
    def no_memory(*arguments):
        raise MemoryError

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    mine = saver(tmp_path, kit.Alone())
    with monkeypatch.context() as patched:
        patched.setattr(publish, "write_routine", no_memory)
        mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
        assert isinstance(mine.finish(), Dropped)
    with monkeypatch.context() as patched:
        patched.setattr(phases.Work, "start", no_thread)
        mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
        outcome = mine.finish()
    assert isinstance(outcome, Dropped) and "can't start new thread" in outcome.reason
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    assert isinstance(mine.finish(), Saved)
    assert kit.names(tmp_path) == ["step-00000005"]


def test_what_cannot_be_deleted_is_said(tmp_path, kit, monkeypatch, capsys):
    kit.save(tmp_path, 1)

    def undeletable(folder):
        if folder.exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    mine = saver(tmp_path, kit.Alone(), keep=1)
    monkeypatch.setattr(publish, "remove_folder", undeletable)
    monkeypatch.setattr(store, "remove_folder", undeletable)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    outcome = mine.finish()
    assert isinstance(outcome, Saved) and outcome.warning and "an older checkpoint could not be deleted: " in outcome.warning
    with monkeypatch.context() as patched:
        patched.setattr(publish, "write_state", refuse)
        mine.begin(kit.state(tmp_path, 6), kit.pieces(6))
        dropped = mine.finish()
    assert isinstance(dropped, Dropped) and "what it had written could not be deleted: Permission denied" in dropped.reason
    prepare_store(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("left by a save that was killed, and cannot be deleted (Permission denied)" in line for line in said)


def test_a_folder_goes_as_far_as_it_can(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    files.remove_folder(tmp_path / "none")
    original = os.rmdir

    def keep_a(path, *, dir_fd=None):
        if str(path).endswith("a"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        original(path, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", keep_a)
        with pytest.raises(PermissionError):
            files.remove_folder(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a"]
    files.remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_take_no_advice_and_sync_no_folders_will_do(tmp_path, kit, monkeypatch, number):
    fsync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def no_advice(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", only_files)
    monkeypatch.setattr(piece_files.os, "posix_fadvise", no_advice)
    assert kit.save(tmp_path, 5).name == "step-00000005"
