"""A run that goes on from, or is repeated on, what another one left: nothing stale is taken, nothing finished is lost."""

from __future__ import annotations

import importlib
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.run import Run
from megatron_codemix.cli import main
from megatron_codemix.shards import Manifest

EXACT = {"exact": True}
TASK_0_OF_2, TASK_1_OF_2 = (["--stage", "shards", "--task", number, "--tasks", "2"] for number in "01")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of a small corpus."""
    monkeypatch.setattr("data_prep.documents._LEAST_CHUNK", 40_000)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.split("\n") if line.startswith("codemix prep:")]
    assert len(lines) == 1, lines
    return lines[0]


def killed(*arguments, **options):
    raise KeyboardInterrupt


def test_decisions_that_a_killed_run_removed_are_not_taken_for_made(
    ready: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(prep_file(ready, deduplicate=EXACT))
    for stage in ("clean", "decide"):
        assert main(["prep", "run", path, "--stage", stage]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("data_prep.dedup.decide"), "decide", killed)
        other = str(prep_file(ready, deduplicate={**EXACT, "sources": ["code"]}))
        assert main(["prep", "run", other, "--stage", "decide"]) == 130
    assert main(["prep", "shards", str(prep_file(ready, deduplicate=EXACT))]) == 0
    assert Manifest.load(ready / "out/code/train").skipped["deduplicate: exact duplicate"] == 10


@pytest.mark.parametrize("damage", ["removed", "of others"])
def test_decisions_that_are_not_there_are_not_taken_for_none(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = str(prep_file(ready, deduplicate=EXACT))
    for stage in ("clean", "decide"):
        assert main(["prep", "run", path, "--stage", stage]) == 0
    file = ready / "out/.work/code/decisions/00001.npy"
    decisions = np.load(file)
    file.unlink()
    if damage == "of others":
        np.save(file, decisions[:-1])
    capsys.readouterr()
    assert main(["prep", "shards", path]) == 2
    assert "'codemix prep run PREP.yaml --stage decide --force'" in only_line(capsys)
    assert main(["prep", "run", path, "--stage", "decide", "--force"]) == 0
    assert main(["prep", "shards", path]) == 0
    assert Manifest.load(ready / "out/code/train").skipped["deduplicate: exact duplicate"] == 10


def test_force_that_is_killed_leaves_no_record_of_decisions(
    ready: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(prep_file(ready, deduplicate=EXACT))
    for stage in ("clean", "decide"):
        assert main(["prep", "run", path, "--stage", stage]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.run.shutil.rmtree", killed)
        assert main(["prep", "run", path, "--stage", "decide", "--force"]) == 130
    assert not (ready / "out/.work/decisions.json").exists()


def test_merging_by_force_keeps_the_shards(ready: Path, prep_file: Callable[..., Path]) -> None:
    path = str(prep_file(ready))
    assert main(["prep", "shards", path]) == 0
    whole = tree(ready / "out")
    made = {file: file.stat().st_mtime_ns for file in (ready / "out/code/train").glob("shard-*")}
    (ready / "out/code/valid/manifest.json").write_text("{}")
    assert main(["prep", "run", path, "--stage", "merge", "--force"]) == 0
    assert tree(ready / "out") == whole
    assert {file: file.stat().st_mtime_ns for file in made} == made


@pytest.mark.parametrize("way", [{}, {"deduplicate": EXACT}])
def test_finished_splits_do_not_need_what_lies_between_the_stages(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], way: dict
) -> None:
    path = str(prep_file(ready, **way))
    assert main(["prep", "shards", path]) == 0
    shutil.rmtree(ready / "out/.work")
    before = tree(ready / "out")
    capsys.readouterr()
    assert main(["prep", "shards", path]) == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert tree(ready / "out") == before
    assert main(["prep", "shards", path, "--force"]) == 0


def test_a_lost_record_is_made_again_and_the_manifest_may_go_at_any_moment(
    ready: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(prep_file(ready))
    assert main(["prep", "shards", path]) == 0
    whole = tree(ready / "out")
    shutil.rmtree(ready / "out/.work")
    shutil.rmtree(ready / "out/code/valid")
    for place in ("megatron_codemix.shards.split.Path.touch", "data_prep.shards.atomic_directory"):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            assert main(["prep", "shards", path]) == 130
    assert main(["prep", "shards", path]) == 0
    assert tree(ready / "out") == whole


def rotate(file: Path) -> None:
    """Another content of equal size."""
    first, *lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join([*lines, first]), "utf-8")


@pytest.mark.parametrize("way", [{}, {"deduplicate": EXACT}])
@pytest.mark.parametrize("done", [["clean"], ["clean", "decide", "shards"], ["clean", "decide", "shards", "merge"]])
def test_inputs_that_were_changed_in_place_are_not_mixed(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], way: dict, done: list[str]
) -> None:
    path = str(prep_file(ready, **way))
    for stage in done:
        assert main(["prep", "run", path, "--stage", stage]) == 0
    rotate(ready / "a.jsonl")
    before = tree(ready / "out")
    capsys.readouterr()
    if not way and done == ["clean"]:  # there is no clean store, so nothing was made
        assert main(["prep", "shards", path]) == 0
        return
    for action in (["run", path, "--stage", "shards"], ["run", path, "--stage", "merge"], ["shards", path]):
        assert main(["prep", *action]) == 2
        line = only_line(capsys)
        assert "a.jsonl has been changed since chunk 0 was made of it" in line
        assert "--force" in line
    assert tree(ready / "out") == before
    assert main(["prep", "shards", path, "--force"]) == 0
    assert Manifest.load(ready / "out/code/train").prep["documents_read"] == len((ready / "a.jsonl").read_text("utf-8").splitlines())


def test_copies_of_the_inputs_give_equal_splits(ready: Path, prep_file: Callable[..., Path]) -> None:
    assert main(["prep", "shards", str(prep_file(ready))]) == 0
    splits = tree(ready / "out/code")
    shutil.rmtree(ready / "out/code")
    shutil.rmtree(ready / "out/.work")
    (ready / "a.jsonl").write_bytes((ready / "a.jsonl").read_bytes())
    assert main(["prep", "shards", str(prep_file(ready))]) == 0
    assert tree(ready / "out/code") == splits


@pytest.mark.parametrize("way", [{}, {"deduplicate": EXACT}])
def test_a_key_that_comes_twice_in_a_tar_is_refused(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], way: dict
) -> None:
    with tarfile.open(ready / "a.tar", "w") as tar:
        for number, name in enumerate(["a", *(f"b{number}" for number in range(50)), "a"]):
            content = f"This is the text of sample {number}.".encode()
            member = tarfile.TarInfo(f"{name}.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = {"kind": "webdataset", "paths": [str(ready / "a.tar")], "id_field": None, "group_field": None, "path_field": None}
    assert main(["prep", "shards", str(prep_file(ready, source=source, **way))]) == 2
    assert "several samples are named 'a.tar:a'" in only_line(capsys)


@pytest.mark.parametrize(
    ("theirs", "ours", "refused"),
    [
        ([], [], True),
        ([], ["--stage", "shards", "--task", "0", "--tasks", "2"], True),
        (["--stage", "shards", "--task", "0", "--tasks", "2"], [], True),
        (["--stage", "shards", "--task", "0", "--tasks", "2"], ["--stage", "shards", "--task", "0", "--tasks", "2"], True),
        (["--stage", "shards", "--task", "1", "--tasks", "2"], ["--stage", "shards", "--task", "0", "--tasks", "2"], False),
        ([*TASK_1_OF_2[:-1], "3"], TASK_0_OF_2, True),
        (TASK_1_OF_2, ["pack_tokens=900", *TASK_0_OF_2], True),
        (TASK_1_OF_2, ["workers=2", *TASK_0_OF_2], False),
    ],
)
def test_two_runs_do_not_write_one_output(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], theirs: list[str], ours: list[str], refused: bool
) -> None:
    path = str(prep_file(ready))
    waiting = (
        "import sys, time; from data_prep import run\n"
        "run.Run.begin = lambda *given, **more: print('begun', flush=True) or time.sleep(600)\n"
        "from megatron_codemix.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", waiting, "prep", "run", path, *theirs], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert main(["prep", "run", path, *ours]) == (2 if refused else 0)
        if refused:
            assert " on it (" in only_line(capsys)
            assert not (ready / "out/code").exists()
    finally:
        process.kill()
        process.wait()
    assert main(["prep", "run", path, "--stage", "shards"]) == 0
    assert not (ready / "out/.work/.lock").exists()


@pytest.mark.parametrize("way", [{}, {"deduplicate": EXACT}])
@pytest.mark.parametrize("size", ["equal", "other"])
def test_an_input_that_is_written_to_while_it_is_read_is_seen_at_the_end(
    ready: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: dict, size: str
) -> None:
    def shards_and_change(run: Run) -> None:
        make_shards(run)
        rotate(ready / "a.jsonl")
        if size == "other":
            with open(ready / "a.jsonl", "a") as out:
                out.write("\n")

    make_shards = Run.shards
    with monkeypatch.context() as patch:
        patch.setattr(Run, "shards", shards_and_change)
        assert main(["prep", "shards", str(prep_file(ready, **way))]) == 2
    assert "sources.code: a.jsonl was changed while it was read" in only_line(capsys)
    assert not (ready / "out/code/train/manifest.json").exists()
    assert main(["prep", "shards", str(prep_file(ready, **way)), "--force"]) == 0
