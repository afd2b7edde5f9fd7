"""Finding where to continue, with the processes of a run as threads: who reads what, what is damage, what is told to whom."""

import errno
import json
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.checkpoint import Checkpoint, newest, newest_together, ranks, record, resume_point, store
from megatron_codemix.checkpoint.ranks import Alone, in_rounds, on_each, on_main
from megatron_codemix.checkpoint.record import Damaged, FileEntry, read_record, share
from megatron_codemix.cli import main
from megatron_codemix.errors import JobError, UserError
from megatron_codemix.pieces import EXP_AVG_SQ, write_pieces

WEIGHTS = "weights/rank-00000-of-00001.safetensors"


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=12), parts=st.integers(1, 6))
def test_each_file_is_read_by_one_process_and_none_has_much_more(sizes, parts):
    entries = {f"file{number}": FileEntry(size=size, sha256="") for number, size in enumerate(sizes)}
    whole = record.Record.model_construct(files=entries)
    shares = [share(whole, part, parts) for part in range(parts)]
    assert sorted(name for names in shares for name in names) == sorted(entries)
    loads = [sum(entries[name].size for name in names) for names in shares]
    assert max(loads) - min(loads) <= max(sizes)


def test_processes_share_the_hashing_and_agree_on_what_is_damaged(tmp_path, monkeypatch, capsys, kit):
    kit.save(tmp_path, 1)
    newer = kit.save(tmp_path, 2)
    path = newer / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    read: Counter[Path] = Counter()
    original = record.sha256_file

    def counted(path, *arguments):
        read[path] += 1
        return original(path, *arguments)

    monkeypatch.setattr(record, "sha256_file", counted)
    beats: list[int] = []
    found = kit.Together(3).run(lambda ranks: resume_point(tmp_path, ranks, lambda: beats.append(ranks.rank)))
    assert [checkpoint.step for checkpoint in found] == [1, 1, 1]
    assert set(read.values()) == {1} and len(read) == 10
    assert set(beats) == {0, 1, 2}, "who has little to read beats too"
    assert capsys.readouterr().err.count("trying the one before it") == 1, "only the main process says it"
    assert kit.names(tmp_path) == ["damaged-step-00000002", "step-00000001"]


def test_an_unreadable_file_is_damage_and_the_one_before_is_used(tmp_path, monkeypatch, capsys, kit):
    kit.save(tmp_path, 1)
    newer = kit.save(tmp_path, 2)
    original = record.sha256_file

    def bad_sector(path, *arguments):
        if path == newer / WEIGHTS:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments)

    monkeypatch.setattr(record, "sha256_file", bad_sector)
    with pytest.raises(Damaged, match=r"safetensors: cannot be read \(Input/output error\); restore"):
        Checkpoint.open(newer)
    found = kit.Together(2).run(lambda ranks: newest_together(tmp_path, ranks))
    assert [checkpoint.step for checkpoint in found] == [1, 1]
    found = newest(tmp_path)
    assert found is not None and found.step == 1
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    assert "cannot be read (Input/output error)" in capsys.readouterr().err


def test_a_folder_that_may_not_be_entered_is_damage_too(tmp_path, monkeypatch, kit):
    """Root may go anywhere, so the refusal is the system call's own."""
    kit.save(tmp_path, 1)
    newer = kit.save(tmp_path, 2)
    original = Path.is_file

    def refuse(path):
        if path.parent == newer:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(Damaged, match=r"cannot be read \(Permission denied\); mend that"):
        Checkpoint.open(newer)
    found = newest(tmp_path)
    assert found is not None and found.step == 1


def test_a_second_damaged_one_of_a_step_takes_the_place_of_none(tmp_path, capsys, kit):
    kit.save(tmp_path, 1)
    for content in (b"first", b"second"):
        (kit.save(tmp_path, 2) / "ledger.json").write_bytes(content)
        found = resume_point(tmp_path, Alone())
        assert found is not None and found.step == 1
    assert kit.names(tmp_path) == ["damaged-step-00000002", "damaged-step-00000002-2", "step-00000001"]
    assert (tmp_path / "checkpoints" / "damaged-step-00000002" / "ledger.json").read_bytes() == b"first"
    assert "set aside as damaged-step-00000002-2" in capsys.readouterr().err


def test_one_that_cannot_be_set_aside_is_one_line_on_every_process(tmp_path, monkeypatch, kit):
    kit.save(tmp_path, 1)
    (kit.save(tmp_path, 2) / "ledger.json").unlink()

    def refuse(*arguments):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rename", refuse)
    found = kit.Together(2).run(lambda ranks: resume_point(tmp_path, ranks))
    assert all(isinstance(error, UserError) and "cannot be renamed (Operation not permitted)" in str(error) for error in found)


@pytest.mark.parametrize("change", ["known", "lost"])
def test_what_a_newer_or_older_code_wrote_is_refused_and_stays(tmp_path, capsys, kit, change):
    kit.save(tmp_path, 1)
    path = kit.save(tmp_path, 2) / "checkpoint.json"
    raw = json.loads(path.read_text())
    raw["created_by"] = "9.8.7"
    if change == "known":
        raw["model"]["something_new"] = 1
    else:
        del raw["revision"]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"written by codemix 9\.8\.7 .* use that one") as caught:
        resume_point(tmp_path, Alone())
    assert not isinstance(caught.value, Damaged)
    assert kit.names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_pruned_while_it_is_opened_is_no_damage(tmp_path, monkeypatch, capsys, kit):
    """Between listing and reading, the run publishes another one and deletes what was listed."""
    kit.save(tmp_path, 1)
    original, done = store.read_record, []

    def pruned(folder):
        if not done:
            done.append(folder)
            kit.save(tmp_path, store.step_of(folder) + 1)
            shutil.rmtree(folder)
        return original(folder)

    monkeypatch.setattr(store, "read_record", pruned)
    found = newest(tmp_path)
    assert found is not None and found.step == 2
    assert capsys.readouterr().err == ""
    done.clear()
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    done.clear()
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_work_of_hours_is_waited_for_in_short_rounds(monkeypatch, kit):
    """One process has all the work; the others meet it again and again, and all of them beat while it gets on."""
    monkeypatch.setattr(ranks, "_ROUND_SECONDS", 0.01)
    beats: Counter[int] = Counter()

    def work(process):
        def task(moved):
            for _ in range(30 * (process.rank == 1)):
                time.sleep(0.01)
                moved()
            return process.rank * 10

        return in_rounds(process, task, lambda: beats.update([process.rank]))

    assert kit.Together(3).run(work) == [[0, 10, 20]] * 3
    assert min(beats[rank] for rank in range(3)) > 3


def test_work_that_stands_still_brings_no_beat(monkeypatch, kit):
    monkeypatch.setattr(ranks, "_ROUND_SECONDS", 0.01)
    stuck = threading.Event()
    threading.Timer(0.3, stuck.set).start()
    beats: list[int] = []
    in_rounds(Alone(), lambda moved: stuck.wait(60), lambda: beats.append(1))
    assert beats == []


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (UserError("one", "two"), UserError, "one\ntwo"),
        (JobError("three"), JobError, "three"),
        (OSError(errno.ESTALE, "Stale file handle", "/there"), JobError, "/there: Stale file handle; mend that"),
    ],
)
def test_what_one_process_meets_ends_all_with_its_line(kit, error, kind, words):
    def fails_on(rank, process):
        def work(*arguments):
            if process.rank == rank:
                raise error

        return work

    for all_of_them in (
        kit.Together(3).run(lambda process: on_main(process, fails_on(0, process))),
        kit.Together(3).run(lambda process: on_each(process, fails_on(2, process))),
        kit.Together(3).run(lambda process: in_rounds(process, fails_on(1, process), lambda: None)),
    ):
        assert all(type(one) is kind and words in str(one) for one in all_of_them)


def test_a_defect_is_raised_where_it_happened():
    for call in (lambda: on_each(Alone(), lambda: 1 // 0), lambda: in_rounds(Alone(), lambda moved: 1 // 0, lambda: None)):
        with pytest.raises(ZeroDivisionError):
            call()


@pytest.mark.parametrize("left_out", ["moment", "tensor"])
def test_a_checkpoint_that_lacks_what_its_model_has_is_not_whole(tmp_path, capsys, kit, left_out, monkeypatch):
    """As a wrong map from memory to pieces would leave it: each tensor that is there is there whole."""
    folder = kit.save(tmp_path, 1)
    lost = "decoder.layers.1.mlp.linear_fc2.weight"
    kept = [one for one in kit.pieces(1) if one.block.key != lost or (left_out == "moment" and one.kind != EXP_AVG_SQ)]
    written = write_pieces(folder / WEIGHTS, kept, 1)
    found = read_record(folder)
    found.files[WEIGHTS] = FileEntry(size=written.size, sha256=written.sha256)
    (folder / "checkpoint.json").write_text(found.model_dump_json())
    assert main(["checkpoint", "verify", str(folder)]) == 1
    said = capsys.readouterr().err
    what = f"{EXP_AVG_SQ} of '{lost}'" if left_out == "moment" else f"'{lost}'"
    assert said.count("\n") == 1 and f"not the whole state of its model: no {what}" in said


def test_what_a_checkpoint_says_cannot_steer_a_terminal(tmp_path, capsys, kit):
    path = kit.save(tmp_path, 1) / "checkpoint.json"
    raw = json.loads(path.read_text())
    raw["files"]["weights/\x1b]0;mine\x07\u202e.bin"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(raw))
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert r"\x1b]0;mine\x07\u202e" in text
        assert all(one.isprintable() or one == "\n" for one in text)
