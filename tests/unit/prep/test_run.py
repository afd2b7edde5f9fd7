"""`codemix prep run`: stages, tasks, duplicates and repositories across chunks, what is counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_codemix.cli import main
from megatron_codemix.shards import Manifest, SplitReader, document_id
from megatron_codemix.tokenizer import Tokenizer

DEDUPLICATE = {"exact": True, "near": {"threshold": 0.9, "permutations": 32}}
REPOSITORIES = {"shape": {"repositories": {"max_bytes": 20_000}}}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of a small corpus."""
    monkeypatch.setattr("data_prep.documents._LEAST_CHUNK", 40_000)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def clear(folder: Path) -> None:
    for name in ("code", ".work"):
        shutil.rmtree(folder / "out" / name, ignore_errors=True)


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.split("\n") if line.startswith("codemix prep:")]
    assert len(lines) == 1, lines
    return lines[0]


def texts(folder: Path) -> list[str]:
    tokenizer = Tokenizer.load(folder / "tokenizer")
    splits = [SplitReader(folder / "code" / split) for split in ("train", "valid")]
    return [tokenizer.decode(document.tokens) for split in splits for document in split.documents()]


@pytest.mark.parametrize("way", [{}, {"deduplicate": DEDUPLICATE}, {"deduplicate": DEDUPLICATE, "source": REPOSITORIES}])
def test_bytes_do_not_depend_on_workers_and_tasks(ready: Path, prep_file: Callable[..., Path], way: dict) -> None:
    path = str(prep_file(ready, **way))
    assert main(["prep", "shards", path]) == 0
    one = tree(ready / "out")
    assert len([name for name in one if name.startswith(".work/code/shards/") and name.endswith("record.json")]) > (
        2 if "source" not in way else 0
    )
    clear(ready)
    assert main(["prep", "shards", path, "workers=3"]) == 0
    assert tree(ready / "out") == one
    clear(ready)
    for stage in ("clean", "decide", "shards", "merge"):
        for task in [3, 1, 2, 0] if stage in ("clean", "shards") else [None]:
            share = [] if task is None else ["--task", str(task), "--tasks", "4"]
            assert main(["prep", "run", path, "--stage", stage, *share]) == 0
    assert tree(ready / "out") == one
    assert main(["prep", "verify", str(ready / "out")]) == 0


def test_duplicates_are_left_out_counted_and_recorded(ready: Path, prep_file: Callable[..., Path], corpus: list[dict]) -> None:
    assert main(["prep", "shards", str(prep_file(ready, deduplicate=DEDUPLICATE))]) == 0
    train, valid = (Manifest.load(ready / "out/code" / split) for split in ("train", "valid"))
    copies = {document_id(f"{row['repo']}/{row['path']}") for row in corpus[-10:]}
    kept = {int(one.row["document_id"]) for split in ("train", "valid") for one in SplitReader(ready / "out/code" / split).documents()}
    assert not kept & copies
    assert train.skipped["deduplicate: exact duplicate"] == 10
    dropped = sum(train.skipped.values())
    assert train.prep["documents_read"] == len(corpus) == train.num_documents + valid.num_documents + sum(valid.skipped.values()) + dropped
    assert (ready / "out/code/drops.jsonl.zst").stat().st_size


def test_files_of_a_repository_are_joined_wherever_they_lie(ready: Path, prep_file: Callable[..., Path], corpus: list[dict]) -> None:
    assert main(["prep", "shards", str(prep_file(ready, source=REPOSITORIES))]) == 0
    found = texts(ready / "out")
    assert 10 <= len(found) < len(corpus)
    held = Counter(row["repo"] for row in corpus)
    for text in found:
        repository = text[: text.index("p/m")].removesuffix("copy/")
        inside = [row for row in corpus if row["repo"] == repository and row["text"] in text]
        assert inside
        held[repository] -= len(inside)
    assert not any(held.values())
    assert Manifest.load(ready / "out/code/train").prep["documents_joined"] == len(corpus) - len(found)
    assert main(["prep", "verify", str(ready / "out")]) == 0


def test_a_large_group_is_gathered_in_parts(
    ready: Path, prep_file: Callable[..., Path], corpus: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.gather.MOST_BYTES", 3000)
    rows = [{**row, "repo": "one"} for row in corpus] + [
        {"text": f"other {number}", "path": "x", "repo": f"r{number}"} for number in range(40)
    ]
    (ready / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert main(["prep", "shards", str(prep_file(ready, source=REPOSITORIES))]) == 0
    ids = [int(one.row["document_id"]) for split in ("train", "valid") for one in SplitReader(ready / "out/code" / split).documents()]
    assert len(ids) == len(set(ids)) > 50
    whole = "".join(texts(ready / "out"))
    assert all(row["text"] in whole for row in rows)


def test_documents_without_a_repository_are_named_by_their_file(ready: Path, prep_file: Callable[..., Path], corpus: list[dict]) -> None:
    (ready / "a.jsonl").write_text("".join(json.dumps({"text": row["text"], "path": row["path"]}) + "\n" for row in corpus), "utf-8")
    assert main(["prep", "shards", str(prep_file(ready, source={"group_field": None, **REPOSITORIES}))]) == 0
    assert all(text.startswith(("p/m", "copy/p/m")) for text in texts(ready / "out"))


def test_stages_ask_for_those_before_them(ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(prep_file(ready, deduplicate=DEDUPLICATE))
    for done, missing, remedy in (
        ("clean", "decide", "--stage clean"),
        ("decide", "shards", "--stage decide"),
        ("shards", "merge", "--stage shards"),
    ):
        assert main(["prep", "run", path, "--stage", missing]) == 2
        assert remedy in only_line(capsys)
        assert main(["prep", "run", path, "--stage", done]) == 0
        capsys.readouterr()
    assert main(["prep", "run", path, "--stage", "merge"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "0"], "belong together"),
        (["--stage", "shards", "--task", "4", "--tasks", "4"], "numbered 0 … 3"),
        (["--stage", "merge", "--task", "0", "--tasks", "2"], "only the stages clean and shards are divided"),
        (["--stage", "shards", "--task", "0", "--tasks", "2", "--force"], "would remove what other tasks make"),
        (["--stage", "cleanse"], "invalid choice"),
    ],
)
def test_impossible_shares(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["prep", "run", str(prep_file(ready)), *options]) == 2
    assert message in only_line(capsys)


def test_another_threshold_means_other_decisions(ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prep", "shards", str(prep_file(ready, deduplicate=DEDUPLICATE))]) == 0
    before = tree(ready / "out/.work/code/clean")
    capsys.readouterr()
    assert main(["prep", "shards", str(prep_file(ready, deduplicate={"exact": False, "near": DEDUPLICATE["near"]}))]) == 2
    assert "deduplicate changed" in capsys.readouterr().err
    assert main(["prep", "run", str(prep_file(ready, deduplicate={"exact": True})), "--stage", "shards"]) == 2
    assert tree(ready / "out/.work/code/clean") == before


def test_benchmarks_stand_in_the_manifest(ready: Path, prep_file: Callable[..., Path], corpus: list[dict]) -> None:
    (ready / "bench.jsonl").write_text(json.dumps({"prompt": corpus[3]["text"]}) + "\n", "utf-8")
    assert main(["prep", "shards", str(prep_file(ready, decontaminate={"against": [str(ready / "bench.jsonl")]}))]) == 0
    train = Manifest.load(ready / "out/code/train")
    assert len(train.decontaminated_against) == 1
    assert train.decontaminated_against[0].startswith("bench")
    assert any(reason.startswith("decontaminate: ") for reason in train.skipped)


def test_steps_count_what_they_leave_out(ready: Path, prep_file: Callable[..., Path], corpus: list[dict]) -> None:
    clean = {"code_quality": {"max_line_length": 100}, "personal_data": {}}
    assert main(["prep", "shards", str(prep_file(ready, source={"clean": clean}))]) == 0
    train, valid = (Manifest.load(ready / "out/code" / split) for split in ("train", "valid"))
    kept = train.num_documents + valid.num_documents + sum(valid.skipped.values())
    assert train.prep["documents_read"] == len(corpus) == kept + sum(train.skipped.values())
    assert any(reason.startswith("code_quality: ") for reason in train.skipped)
