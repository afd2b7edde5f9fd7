"""`codemix checkpoint list | verify | reshard`."""

import errno
import json
import os

import pytest
import torch

from megatron_codemix.checkpoint import Checkpoint, manage
from megatron_codemix.checkpoint.publish import Saver
from megatron_codemix.cli import main
from megatron_codemix.config import CheckpointConfig
from megatron_codemix.errors import UserError
from megatron_codemix.pieces import KINDS, PieceReader, form

WEIGHTS = "weights/rank-00000-of-00001.safetensors"


def of_ranks(kit, folder, step, world_size):
    """A routine checkpoint of several ranks."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def work(ranks):
        saver = Saver(folder, CheckpointConfig(keep=9), ranks)
        saver.begin(kit.state(folder, step, world_size=world_size), kit.pieces(step, ranks.rank, world_size))
        return saver.finish()

    return kit.Together(world_size).run(work)[0].folder


def test_list_has_a_line_each_and_says_what_is_damaged(tmp_path, capsys, kit):
    kit.save(tmp_path, 100)
    of_ranks(kit, tmp_path, 200, 2)
    kit.save(tmp_path, 300, form="neutral", attempt=2)
    (kit.save(tmp_path, 400) / WEIGHTS).unlink()
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "form", "layout", "attempt", "size", "written", "state"]
    assert [line.split()[0] for line in lines] == ["100", "200", "300", "400"]
    assert "DP2" in lines[1] and "routine" in lines[1]
    assert "neutral" in lines[2] and "one process" in lines[2]
    assert "damaged" in lines[3] and "missing" in lines[3]


def test_verify_reads_every_file_of_one_or_of_all(tmp_path, capsys, kit):
    first, second = kit.save(tmp_path, 100), kit.save(tmp_path, 200)
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: whole; step {folder.name[-3:]}, routine, {len(kit.shapes)} tensors in 5 files" for folder in (first, second)
    ]
    path = first / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["checkpoint", "verify", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("whole") == 1
    assert shown.err.startswith(f"codemix checkpoint: {path}: altered")
    assert main(["checkpoint", "verify", str(second)]) == 0
    assert main(["checkpoint", "verify", str(first)]) == 1


def test_verify_names_every_damaged_file_at_once(tmp_path, capsys, kit):
    folder = of_ranks(kit, tmp_path, 200, 2)
    (folder / WEIGHTS.replace("of-00001", "of-00002")).unlink()
    other = folder / "weights" / "rank-00001-of-00002.safetensors"
    other.write_bytes(other.read_bytes()[:-1] + b"!")
    assert main(["checkpoint", "verify", str(folder)]) == 1
    missing, altered = capsys.readouterr().err.splitlines()
    assert "rank-00000" in missing and "missing" in missing
    assert "rank-00001" in altered and "altered" in altered


def test_list_takes_a_step_folder_too(tmp_path, capsys, kit):
    kit.save(tmp_path, 100)
    folder = kit.save(tmp_path, 200)
    assert main(["checkpoint", "list", str(folder)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "200"]


def test_verify_finds_elements_that_no_file_has(tmp_path, capsys, kit):
    """Each file is as its record says, but one rank's is not in it."""
    folder = of_ranks(kit, tmp_path, 100, 2)
    name = "weights/rank-00001-of-00002.safetensors"
    (folder / name).unlink()
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["files"][name]
    (folder / "checkpoint.json").write_text(json.dumps(record))
    assert main(["checkpoint", "verify", str(folder)]) == 1
    assert "lacks" in capsys.readouterr().err


@pytest.mark.parametrize("world_size", [1, 3])
def test_reshard_makes_the_neutral_form_beside_the_rest_unchanged(tmp_path, capsys, kit, world_size):
    folder = of_ranks(kit, tmp_path / "run", 100, world_size)
    out = tmp_path / "step-00000100"
    assert main(["checkpoint", "reshard", str(tmp_path / "run"), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    before, after = Checkpoint.open(folder), Checkpoint.open(out)
    assert after.record.form == "neutral"
    others = {name: entry for name, entry in before.record.files.items() if not name.startswith("weights/")}
    assert others == {name: entry for name, entry in after.record.files.items() if not name.startswith("weights/")}
    same = {"form", "files"}
    assert before.record.model_dump(exclude=same) == after.record.model_dump(exclude=same)
    reader = PieceReader(after.weights)
    assert form(reader) == "neutral"
    assert all(torch.equal(reader.whole(key, kind), kit.whole(key, kind, 100)) for key in kit.shapes for kind in KINDS)
    assert main(["checkpoint", "verify", str(out)]) == 0


def test_reshard_gives_the_same_files_whichever_layout_wrote(tmp_path, kit):
    contents = []
    for world_size in (1, 2, 3):
        of_ranks(kit, tmp_path / f"run{world_size}", 100, world_size)
        out = manage.reshard(tmp_path / f"run{world_size}", tmp_path / f"out{world_size}")
        contents.append({path.name: path.read_bytes() for path in (out / "weights").iterdir()})
    assert contents[0] == contents[1] == contents[2]


def test_reshard_refuses_what_it_cannot_do(tmp_path, capsys, kit):
    folder = kit.save(tmp_path, 100)
    with pytest.raises(UserError, match="exists already"):
        manage.reshard(folder, tmp_path)
    (tmp_path / "plan.json").touch()
    with pytest.raises(UserError, match="lies among the checkpoints of a run"):
        manage.reshard(folder, tmp_path / "checkpoints" / "step-00000101")
    neutral = manage.reshard(folder, tmp_path / "out")
    with pytest.raises(UserError, match="is in the neutral form already"):
        manage.reshard(neutral, tmp_path / "again")
    (folder / "ledger.json").unlink()
    assert main(["checkpoint", "reshard", str(folder), str(tmp_path / "third")]) == 2
    assert "ledger.json: missing" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_full_disk_leaves_no_half_of_a_resharded_checkpoint(tmp_path, capsys, monkeypatch, kit):
    folder = kit.save(tmp_path, 100)

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manage, "write_neutral", refuse)
    assert main(["checkpoint", "reshard", str(folder), str(tmp_path / "out")]) == 1
    assert "was not written (No space left on device); make room there" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_what_is_not_there_is_one_line(tmp_path, capsys):
    for arguments, words in (
        (["list", str(tmp_path / "nowhere")], "no such run folder"),
        (["list", str(tmp_path)], "has no checkpoint"),
        (["verify", str(tmp_path)], "has no checkpoint"),
        (["reshard", str(tmp_path), str(tmp_path / "out")], "not a checkpoint"),
        ([], "VERB"),
    ):
        assert main(["checkpoint", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
