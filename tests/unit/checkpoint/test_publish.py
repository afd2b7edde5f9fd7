"""A save in flight: phases on several ranks, the two forms, refusals of the disk, replaced processes, memory of a snapshot."""

import errno
import os
import threading
import time

import pytest
import torch

from megatron_codemix.checkpoint import NEUTRAL, ROUTINE, Attempt, Checkpoint, Superseded, phases, prepare_store, publish
from megatron_codemix.checkpoint.publish import Dropped, Saved, Saver
from megatron_codemix.checkpoint.snapshot import Snapshot
from megatron_codemix.config import CheckpointConfig
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import KINDS, Block, Piece, PieceReader, form

KEEP_ALL = CheckpointConfig(keep=9)


def saver(folder, ranks, require=lambda: None, **settings) -> Saver:
    prepare_store(folder)
    return Saver(folder, CheckpointConfig(**settings) if settings else KEEP_ALL, ranks, require)


def same_state(kit, folder, step) -> bool:
    reader = PieceReader(Checkpoint.open(folder).weights)
    return reader.step == step and all(
        torch.equal(reader.whole(key, kind), kit.whole(key, kind, step)) for key in kit.shapes for kind in KINDS
    )


@pytest.mark.parametrize("wanted", [ROUTINE, NEUTRAL])
@pytest.mark.parametrize("world_size", [1, 3])
def test_all_ranks_write_their_part_and_one_folder_appears(tmp_path, kit, wanted, world_size):
    prepare_store(tmp_path)

    def work(ranks):
        mine = Saver(tmp_path, KEEP_ALL, ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=world_size), kit.pieces(5, ranks.rank, world_size), wanted)
        assert mine.in_flight == 5
        outcome = mine.finish()
        assert mine.in_flight is None
        return outcome

    outcomes = kit.Together(world_size).run(work)
    assert all(isinstance(outcome, Saved) and outcome.step == 5 for outcome in outcomes), outcomes
    assert kit.names(tmp_path) == ["step-00000005"]
    record = Checkpoint.open(tmp_path).record
    assert (record.form, record.layout.data, record.layout.world_size) == (wanted, world_size, world_size)
    assert same_state(kit, tmp_path, 5)
    files = sorted(name for name in record.files if name.startswith("weights/"))
    if wanted == ROUTINE:
        assert files == [f"weights/rank-{rank:05d}-of-{world_size:05d}.safetensors" for rank in range(world_size)]
    else:
        assert all(name.startswith("weights/neutral-") for name in files)
        assert form(PieceReader(tmp_path / "checkpoints" / "step-00000005" / "weights")) == NEUTRAL


def test_a_rank_without_pieces_writes_no_file(tmp_path, kit):
    prepare_store(tmp_path)

    def work(ranks):
        mine = Saver(tmp_path, KEEP_ALL, ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5) if ranks.rank == 1 else [])
        return mine.finish()

    assert all(isinstance(outcome, Saved) for outcome in kit.Together(2).run(work))
    assert same_state(kit, tmp_path, 5)


def test_training_goes_on_while_a_slow_disk_writes(tmp_path, kit, monkeypatch):
    """And what is written is the state of the step at which the save began."""
    go, original = threading.Event(), phases.write_routine

    def slow(*arguments):
        assert go.wait(60)
        return original(*arguments)

    monkeypatch.setattr(publish, "write_routine", slow)
    mine, live = saver(tmp_path, kit.Alone()), kit.pieces(5)
    mine.begin(kit.state(tmp_path, 5), live)
    for _ in range(3):
        assert mine.flags == (True, False)
        assert mine.poll(*mine.flags) is None
        for piece in live:
            piece.data.add_(1.0)  # training
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    go.set()
    outcome, deadline = None, time.monotonic() + 60
    while outcome is None and time.monotonic() < deadline:
        outcome = mine.poll(*mine.flags)
    assert isinstance(outcome, Saved) and outcome.stall_seconds < outcome.seconds
    assert same_state(kit, tmp_path, 5)
    assert mine.poll(*mine.flags) is None
    assert mine.finish() is None


@pytest.mark.parametrize(
    "wanted, phase, refusing",
    [
        *((wanted, "write_routine", rank) for wanted in (ROUTINE, NEUTRAL) for rank in (0, 1)),
        *((wanted, "write_state", 0) for wanted in (ROUTINE, NEUTRAL)),
    ],
)
def test_where_one_disk_refuses_all_ranks_drop_the_save(tmp_path, kit, monkeypatch, wanted, phase, refusing):
    kit.save(tmp_path, 1)
    original = getattr(publish, phase)

    def refuse(*arguments):
        if phase != "write_routine" or arguments[2] == refusing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(publish, phase, refuse)

    def work(ranks):
        mine = Saver(tmp_path, KEEP_ALL, ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2), wanted)
        return mine.finish(), mine.in_flight

    results = kit.Together(2).run(work)
    for outcome, in_flight in results:
        assert isinstance(outcome, Dropped) and in_flight is None
        assert outcome.reason == f"rank {refusing}: No space left on device"
    assert kit.names(tmp_path) == ["step-00000001"]
    assert same_state(kit, tmp_path, 1)
    monkeypatch.setattr(publish, phase, original)
    assert all(isinstance(outcome, Saved) for outcome, _ in kit.Together(2).run(work)), "the next save is as good as any"
    assert kit.names(tmp_path) == ["step-00000001", "step-00000005"]


def test_bytes_that_a_disk_does_not_give_back_are_a_refusal(tmp_path, kit, monkeypatch):
    """Something alters the file between the fsync and the comparison."""
    original = os.fsync

    def corrupting(descriptor):
        original(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "safetensors" in name and name.endswith(".tmp"):
            with open(name, "r+b") as handle:
                handle.seek(-1, os.SEEK_END)
                handle.write(b"!")

    monkeypatch.setattr(os, "fsync", corrupting)
    mine = saver(tmp_path, kit.Alone())
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    outcome = mine.finish()
    assert isinstance(outcome, Dropped) and "what lies on the disk is not what was written" in outcome.reason
    assert kit.names(tmp_path) == []


def test_a_file_that_never_comes_to_the_main_rank_is_a_refusal(tmp_path, kit, monkeypatch):
    """As with a run folder that each machine has for itself."""
    monkeypatch.setattr(phases, "_VISIBLE_SECONDS", 0.5)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    prepare_store(here)
    prepare_store(elsewhere)

    def work(ranks):
        mine = Saver(elsewhere if ranks.rank else here, KEEP_ALL, ranks)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2))
        return mine.finish()

    assert all("is the run folder shared by all machines?" in outcome.reason for outcome in kit.Together(2).run(work))
    assert kit.names(here) == []


def test_a_replaced_process_can_publish_nothing(tmp_path, kit):
    kit.save(tmp_path, 1)
    stale, current = Attempt.begin(tmp_path), Attempt.begin(tmp_path)
    assert (stale.number, current.number) == (0, 1)
    mine = saver(tmp_path, kit.Alone(), stale.require_current)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    with pytest.raises(UserError, match="another process has taken this folder over"):
        mine.finish()
    assert kit.names(tmp_path) == ["step-00000001"]
    other = saver(tmp_path, kit.Alone(), current.require_current)
    other.begin(kit.state(tmp_path, 5, attempt=1), kit.pieces(5))
    assert isinstance(other.finish(), Saved)


def test_every_rank_hears_that_the_process_was_replaced(tmp_path, kit):
    prepare_store(tmp_path)
    stale = Attempt.begin(tmp_path)
    Attempt.begin(tmp_path)

    def work(ranks):
        mine = Saver(tmp_path, KEEP_ALL, ranks, stale.require_current if ranks.is_main else lambda: None)
        mine.begin(kit.state(tmp_path, 5, world_size=2), kit.pieces(5, ranks.rank, 2))
        return mine.finish()

    assert [str(error) for error in kit.Together(2).run(work)] == [str(Superseded.of(tmp_path))] * 2


def test_what_a_stale_process_published_of_this_step_gives_way(tmp_path, kit):
    kit.save(tmp_path, 5, attempt=0)
    kit.save(tmp_path, 5, attempt=1)
    assert kit.names(tmp_path) == ["step-00000005"]
    assert Checkpoint.open(tmp_path).record.attempt == 1


def test_nothing_is_published_after_the_run_has_ended(tmp_path, kit, monkeypatch):
    go, original = threading.Event(), phases.write_routine
    monkeypatch.setattr(publish, "write_routine", lambda *arguments: go.wait(60) and original(*arguments))
    mine = saver(tmp_path, kit.Alone())
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    mine.close()
    go.set()
    with pytest.raises(RuntimeError, match="the run has ended"):
        mine.finish()
    assert kit.names(tmp_path) == []


def test_a_defect_is_raised_and_not_taken_for_a_full_disk(tmp_path, kit):
    mine = saver(tmp_path, kit.Alone())
    state = kit.state(tmp_path, 5)
    state.ledger["loss"] = float("nan")  # no JSON
    mine.begin(state, kit.pieces(5))
    with pytest.raises(RuntimeError, match="the save of step 5 failed on rank 0") as caught:
        mine.finish()
    assert isinstance(caught.value.__cause__, ValueError)
    assert kit.names(tmp_path) == []


def test_an_old_checkpoint_that_cannot_be_deleted_costs_a_warning(tmp_path, kit, monkeypatch):
    kit.save(tmp_path, 1)

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(publish, "discard", refuse)
    mine = saver(tmp_path, kit.Alone(), keep=1)
    mine.begin(kit.state(tmp_path, 5), kit.pieces(5))
    outcome = mine.finish()
    assert isinstance(outcome, Saved) and outcome.warning and "could not be deleted" in outcome.warning
    assert kit.names(tmp_path) == ["step-00000001", "step-00000005"]


def test_a_snapshot_is_a_copy_in_one_buffer_that_is_used_again():
    snapshot, block = Snapshot(), Block("w", (1000,), (0,), (1000,))
    live = [Piece(block, kind, 0, 1000, torch.full((1000,), float(number))) for number, kind in enumerate(KINDS)]
    first = snapshot.take(live)
    start = first[0].data.data_ptr()
    assert [piece.data.data_ptr() - start for piece in first] == [0, 4000, 8000]
    live[1].data.fill_(7.0)
    assert [float(piece.data[0]) for piece in first] == [0.0, 1.0, 2.0]
    second = snapshot.take(live)
    assert second[0].data.data_ptr() == start
    assert [float(piece.data[-1]) for piece in second] == [0.0, 7.0, 2.0]
    assert [(piece.kind, piece.start, piece.stop, piece.block) for piece in second] == [(kind, 0, 1000, block) for kind in KINDS]
    assert snapshot.take(live[:1])[0].data.untyped_storage().nbytes() == 4000, "another model has another buffer"
    assert snapshot.take([]) == []


def test_attempts_count_up_and_know_which_is_the_last(tmp_path):
    first = Attempt.begin(tmp_path)
    assert (first.number, first.is_current()) == (0, True)
    second = Attempt.begin(tmp_path)
    assert (second.number, first.is_current(), second.is_current()) == (1, False, True)
    (tmp_path / "attempt.json").unlink()
    assert second.is_current(), "deleted, and taken by nobody since"
    third = Attempt.begin(tmp_path, least=2)
    assert (third.number, second.is_current()) == (2, False)
    (tmp_path / "attempt.json").write_text("{")
    for ask in (third.is_current, lambda: Attempt.begin(tmp_path)):
        with pytest.raises(UserError, match=r"attempt\.json: cannot be read"):
            ask()


def test_two_attempts_with_one_number_are_two(tmp_path):
    first = Attempt.begin(tmp_path)
    (tmp_path / "attempt.json").unlink()
    second = Attempt.begin(tmp_path)
    assert first.number == second.number
    assert not first.is_current()
