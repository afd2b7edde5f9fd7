"""A chunk that is cleaned in parts: whatever moment a run is killed at, the next one goes on behind the last finished part."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import clean
from data_prep.arrays import GrowingArray, save_array
from megatron_codemix.cli import main

WAYS = {
    "duplicates": {
        "source": {"on_undecodable": "skip", "clean": {"code_quality": {"max_line_length": 100}, "personal_data": {}}},
        "deduplicate": {"exact": True, "near": {}},
    },
    "repositories, unnamed": {"source": {"id_field": None, "on_undecodable": "skip", "shape": {"repositories": {}}}},
}
PART_BYTES = 20_000
# a command of its own that ends itself at the n-th of all that it does to files and documents
_COMMAND = f"""
import os, random, signal, sys
from data_prep import clean
clean._PART_BYTES = {PART_BYTES}
moments, count = int(sys.argv[1]), 0
def happened(event, arguments=()):
    global count
    if event == "document" or event.startswith(("os.", "open", "shutil.")):
        count += 1
        if count == moments:
            os.kill(os.getpid(), signal.SIGKILL)
def killing_steps(*given, real=clean.through_steps):
    happened("document")
    return real(*given)
def killing_chunk(task, real=clean.clean_chunk):
    if moments:
        sys.addaudithook(happened)
    result = real(task)
    print("moments", count, file=sys.stderr)
    return result
clean.through_steps = killing_steps
import data_prep.run
data_prep.run.clean_chunk = killing_chunk
from megatron_codemix.cli import main
sys.exit(main(sys.argv[2:]))
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def prepared(packed: Path, prep_file: Callable[..., Path], way: dict) -> str:
    source = {"paths": [str(packed / "a.jsonl.gz")], **way.get("source", {})}
    return str(prep_file(packed, **{**way, "source": source}))


def passed(packed: Path) -> int:
    """Documents in finished parts."""
    part = packed / "out/.work/code/clean/.00000.tmp/part.json"
    return json.loads(part.read_text())["passed"] if part.exists() else 0


def killed_at(moment: int, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _COMMAND, str(moment), "prep", "run", path, "--stage", "clean"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_run_killed_at_any_moment_goes_on_and_gives_the_same_bytes(
    packed: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, way: dict
) -> None:
    monkeypatch.setattr(clean, "_PART_BYTES", PART_BYTES)
    path = prepared(packed, prep_file, way)
    assert main(["prep", "run", path, "--stage", "clean"]) == 0
    whole = tree(packed / "out/.work/code")
    shutil.rmtree(packed / "out/.work")
    generator, before, kills, results = random.Random(3), 0, 0, []
    while kills < 12:
        done = killed_at(generator.randint(1, 260), path)
        if done.returncode == 0:
            results.append(tree(packed / "out/.work/code"))
            shutil.rmtree(packed / "out/.work")
            before = 0
            continue
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert passed(packed) >= before or (packed / "out/.work/code/clean/00000").exists()
        before, kills = passed(packed), kills + 1
    assert main(["prep", "run", path, "--stage", "clean"]) == 0
    results.append(tree(packed / "out/.work/code"))
    assert len(results) > 1
    assert all(result == whole for result in results)
    assert sorted(os.listdir(packed / "out/.work/code/clean")) == ["00000"]


def interrupted(packed: Path, monkeypatch: pytest.MonkeyPatch, path: str, at: int) -> int:
    """Stop cleaning at the `at`-th document; documents in finished parts."""
    steps, stepped = clean.through_steps, []

    def stopping(*given):
        stepped.append(given)
        if len(stepped) == at:
            raise KeyboardInterrupt
        return steps(*given)

    with monkeypatch.context() as patch:
        patch.setattr(clean, "through_steps", stopping)
        assert main(["prep", "run", path, "--stage", "clean"]) == 130
    return passed(packed)


def test_what_is_finished_is_read_over_only(packed: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "_PART_BYTES", PART_BYTES)
    path = prepared(packed, prep_file, WAYS["duplicates"])
    begun = interrupted(packed, monkeypatch, path, 100)
    assert 0 < begun < 100
    stepped, steps = [], clean.through_steps
    monkeypatch.setattr(clean, "through_steps", lambda *given: stepped.append(given[1].name) or steps(*given))
    assert main(["prep", "run", path, "--stage", "clean"]) == 0
    record = json.loads((packed / "out/.work/code/clean/00000/record.json").read_text())
    skipped = sum(record["counts"]["skipped"].values())
    assert len(stepped) == record["counts"]["documents_read"] - skipped - begun


@pytest.mark.parametrize("change", ["settings", "lost", "input"])
def test_what_was_begun_otherwise_is_not_taken(
    packed: Path, prep_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    monkeypatch.setattr(clean, "_PART_BYTES", PART_BYTES)
    other = {**WAYS["duplicates"], "deduplicate": {"exact": True}} if change == "settings" else WAYS["duplicates"]
    path = prepared(packed, prep_file, WAYS["duplicates"])
    assert main(["prep", "run", path, "--stage", "clean"]) == 0
    whole = tree(packed / "out/.work/code")
    shutil.rmtree(packed / "out/.work")
    assert interrupted(packed, monkeypatch, prepared(packed, prep_file, other), 100)
    if change == "lost":
        os.truncate(packed / "out/.work/code/clean/.00000.tmp/documents.bin", 100)
    if change == "input":
        os.utime(packed / "a.jsonl.gz", (1, 1))
        capsys.readouterr()
        assert main(["prep", "run", path, "--stage", "clean"]) == 2
        assert "a.jsonl.gz has been changed since chunk 0 was made of it" in capsys.readouterr().err
        assert main(["prep", "run", path, "--stage", "clean", "--force"]) == 0
    path = prepared(packed, prep_file, WAYS["duplicates"])
    # nor is it, where work with these settings is killed before it has finished a part, by a run with the former ones
    if change == "settings":
        assert not interrupted(packed, monkeypatch, path, 3)
    assert main(["prep", "run", path, "--stage", "clean"]) == 0
    result = tree(packed / "out/.work/code")
    if change == "input":  # its time stands in the record
        assert result.pop("clean/00000/record.json") != whole.pop("clean/00000/record.json")
    assert result == whole


@pytest.mark.parametrize("dtype", [np.dtype("<u8"), np.dtype([("a", "<u8"), ("b", "u1")])])
@pytest.mark.parametrize("count", [0, 1, 9, 30])
def test_an_array_that_grew_equals_one_that_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: np.dtype, count: int) -> None:
    monkeypatch.setattr("data_prep.arrays._BLOCK_ROWS", 7)
    rows = np.zeros(count, dtype)
    values = rows if dtype.names is None else rows["a"]
    values[:] = range(count)
    save_array(tmp_path / "saved.npy", rows)
    with GrowingArray(tmp_path / "grown.npy", dtype) as first:
        for row in rows[: count // 2].tolist():
            first.add(row)
        begun = first.sync()
        first.add(np.ones(1, dtype).tolist()[0])
    with GrowingArray(tmp_path / "grown.npy", dtype, begun) as second:
        assert len(second) == count // 2
        for row in rows[count // 2 :].tolist():
            second.add(row)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
