"""`codemix prep tokenizer` and `prep shards`: the way from documents to splits, interrupted, repeated, misused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.documents import is_held_out, text_hash
from data_prep.held_out import DOCUMENTS_NAME
from data_prep.leakage import ANY_BLOCK, DUPLICATE, HALF_OF_BLOCKS
from megatron_codemix.cli import main
from megatron_codemix.config import PrepConfig, load_config
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Manifest, SplitReader, document_id, verify_split
from megatron_codemix.tokenizer import EngineMismatch, Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

HERE = Path(__file__).resolve().parents[2]


def corpus() -> list[dict]:
    """This project's own files, in pieces, in ten repositories."""
    files = sorted(file for file in (HERE / "megatron_codemix").rglob("*.py"))
    pieces = [piece for file in files for piece in file.read_text("utf-8").split("\n\n\n") if piece.strip()]
    return [{"text": text, "path": f"p/{number}", "repo": f"repo{number % 10}", "lang": "python"} for number, text in enumerate(pieces)]


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_jsonl(folder / "a.jsonl", corpus())
    assert run(folder, "tokenizer") == 0
    return folder / "out" / "tokenizer"


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def prep_file(folder: Path, **changes) -> Path:
    fields = {"id_field": "path", "group_field": "repo", "language_field": "lang"}
    config = {
        "output": str(folder / "out"),
        "sources": {"code": {"kind": "jsonl", "modality": "code", "paths": [str(folder / "a.jsonl")], **fields}},
        "split": {"validation": 0.2, "seed": 1},
        "tokenizer": {"vocab_size": 1200, "sample_bytes": 300_000},
        "pack_tokens": 5000,
        "shard_tokens": 20_000,
        "workers": 1,
    }
    config.update(changes)
    path = folder / "prep.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def run(folder: Path, action: str, *more: str, **changes) -> int:
    return main(["prep", action, str(prep_file(folder, **changes)), *more])


@pytest.fixture
def ready(tmp_path: Path, tokenizer_model: Path) -> Path:
    """A folder with a corpus and a tokenizer."""
    write_jsonl(tmp_path / "a.jsonl", corpus())
    shutil.copytree(tokenizer_model, tmp_path / "out" / "tokenizer")
    return tmp_path


def remove_source(folder: Path) -> None:
    shutil.rmtree(folder / "out" / "code")
    shutil.rmtree(folder / "out" / ".work", ignore_errors=True)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().split("\n")
    errors = [line for line in lines if line.startswith("codemix prep:")]
    assert len(errors) == 1, lines
    return errors[0]


def test_every_document_arrives_once_in_its_split(ready: Path) -> None:
    assert run(ready, "shards") == 0
    tokenizer = Tokenizer.load(ready / "out" / "tokenizer")
    rows = {document_id(f"{row['repo']}/{row['path']}"): row for row in corpus()}
    dropped = Manifest.load(ready / "out/code/valid").skipped.get(DUPLICATE, 0)
    seen = 0
    for split in ("train", "valid"):
        folder = ready / "out" / "code" / split
        verify_split(folder)
        reader = SplitReader(folder)
        assert reader.manifest.languages == {"python": reader.manifest.num_documents}
        assert reader.manifest.tokenizer_fingerprint == tokenizer.fingerprint
        for document in reader.documents():
            row = rows[int(document.row["document_id"])]
            assert tokenizer.decode(document.tokens) == row["text"]
            assert int(document.row["num_bytes"]) == len(row["text"].encode())
            assert is_held_out(row["repo"], 1, 0.2) == (split == "valid")
            seen += 1
    assert seen + dropped == len(rows)
    assert len(Manifest.load(ready / "out/code/train").shards) > 1
    with gzip.open(ready / "out" / "code" / "valid" / DOCUMENTS_NAME, "rb") as lines:
        held_out = [json.loads(line) for line in lines]
    assert len(held_out) == Manifest.load(ready / "out/code/valid").num_documents
    assert all(rows[document_id(row["id"])]["text"] == row["text"] for row in held_out)


def test_result_does_not_depend_on_workers(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.documents._LEAST_CHUNK", 50_000)
    assert run(ready, "shards", "workers=1") == 0
    one = tree(ready / "out")
    assert sum("shards/" in name and name.endswith("record.json") for name in one) > 3
    remove_source(ready)
    assert run(ready, "shards", "workers=3") == 0
    assert tree(ready / "out") == one


def test_again_changes_nothing_and_other_settings_are_refused(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ready, "shards") == 0
    before = tree(ready / "out")
    capsys.readouterr()
    assert run(ready, "shards", "workers=2") == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert tree(ready / "out") == before
    assert run(ready, "shards", "split.seed=2") == 2
    error = capsys.readouterr().err
    assert "made with other settings (split changed)" in error
    assert "--force" in error
    assert tree(ready / "out") == before
    assert run(ready, "shards", "split.seed=2", "--force") == 0
    assert tree(ready / "out") != before
    write_jsonl(ready / "a.jsonl", corpus()[:-1])
    assert run(ready, "shards", "split.seed=2") == 2
    assert "inputs changed" in capsys.readouterr().err


def test_another_source_means_another_leakage_check(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ready, "shards") == 0
    write_jsonl(ready / "b.jsonl", [{"text": f"prose number {i}"} for i in range(50)])
    sources = yaml.safe_load((ready / "prep.yaml").read_text())["sources"]
    sources["prose"] = {"kind": "jsonl", "modality": "text", "paths": [str(ready / "b.jsonl")]}
    assert run(ready, "shards", sources=sources) == 2
    assert "checked for leakage against other training documents" in only_line(capsys)
    assert run(ready, "shards", "--force", sources=sources) == 0
    assert set(Manifest.load(ready / "out/code/valid").prep["checked_against"]) == {"code", "prose"}


@pytest.mark.parametrize("place", ["data_prep.shards.write_record", "data_prep.run.publish_train", "data_prep.run.publish_valid"])
def test_interrupted_run_resumes(ready: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr("data_prep.documents._LEAST_CHUNK", 100_000)
    assert run(ready, "shards") == 0
    whole = tree(ready / "out")
    remove_source(ready)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        assert run(ready, "shards") == 130
    assert (ready / "out/code/train/manifest.json").exists() == place.endswith("valid")
    assert not (ready / "out/code/valid/manifest.json").exists()
    made = {file: file.stat().st_mtime_ns for file in (ready / "out/code/train").glob("shard-*")}
    assert run(ready, "shards") == 0
    assert tree(ready / "out") == whole
    if not place.startswith("data_prep.shards"):
        assert {file: file.stat().st_mtime_ns for file in made} == made


def test_a_chunk_that_was_made_is_not_made_again(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.documents._LEAST_CHUNK", 100_000)
    assert run(ready, "shards") == 0
    whole = tree(ready / "out")
    (ready / "out/code/train/manifest.json").unlink()
    (ready / "out/code/train/.unfinished").touch()
    for part in (ready / "out/.work/code/shards").glob("00001-*"):
        shutil.rmtree(part)
    (ready / "out/code/train/.shard-00001-000.tar.77-0.tmp").write_bytes(b"what a killed process left")
    before = {file.name: file.stat().st_mtime_ns for file in (ready / "out/code/train").glob("shard-*.tar")}
    assert run(ready, "shards") == 0
    after = {file.name: file.stat().st_mtime_ns for file in (ready / "out/code/train").glob("shard-*.tar")}
    assert {name[:11] for name in before if before[name] != after[name]} == {"shard-00001"}
    assert tree(ready / "out") == whole


def test_a_shard_that_has_gone_is_told(ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.run.publish_train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(ready, "shards") == 130
    next((ready / "out/code/train").glob("shard-*.tar")).unlink()
    capsys.readouterr()
    assert run(ready, "shards") == 2
    assert "this shard has gone" in only_line(capsys)


def test_leakage_is_counted_and_duplicates_are_dropped(ready: Path) -> None:
    words = np.random.default_rng(0).integers(0, 10_000, (60, 300))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    train = next(f"t{i}" for i in range(100) if not is_held_out(f"t{i}", 1, 0.2))
    valid = next(f"v{i}" for i in range(100) if is_held_out(f"v{i}", 1, 0.2))
    rows = [{"text": text, "path": f"train/{i}", "repo": train, "lang": None} for i, text in enumerate(texts[:40])]
    held = [*texts[40:50], texts[0].replace(" ", "\n"), texts[1], "fresh start " + texts[2], texts[50] + texts[3]]
    rows += [{"text": text, "path": f"valid/{i}", "repo": valid, "lang": None} for i, text in enumerate(held)]
    write_jsonl(ready / "a.jsonl", rows)
    assert run(ready, "shards") == 0
    manifest = Manifest.load(ready / "out/code/valid")
    assert manifest.skipped == {DUPLICATE: 2}
    assert manifest.num_documents == 12
    # a shifted copy has its blocks at other places than the original; half of the last one is new
    assert manifest.leakage[ANY_BLOCK] == 2
    assert 1 <= manifest.leakage[HALF_OF_BLOCKS] <= 2


def test_without_held_out_documents(ready: Path) -> None:
    assert run(ready, "shards", "split.validation=0") == 0
    assert not (ready / "out/code/valid").exists()
    assert Manifest.load(ready / "out/code/train").num_documents == len(corpus())


def test_long_documents_are_cut_at_a_character_and_counted(ready: Path) -> None:
    write_jsonl(ready / "a.jsonl", [{"text": "é" * 100, "path": f"p{i}", "repo": f"r{i}", "lang": None} for i in range(40)])
    assert run(ready, "shards", "sources.code.max_document_bytes=33", "split.validation=0") == 0
    manifest = Manifest.load(ready / "out/code/train")
    assert manifest.prep["documents_cut"] == 40
    assert manifest.num_bytes == 40 * 32


def test_the_tokenizer_learns_from_no_held_out_document_that_is_cut(tmp_path: Path) -> None:
    rows = [{"text": row["text"].replace("e", "é")} for row in corpus()]  # cuts often fall inside a character
    write_jsonl(tmp_path / "a.jsonl", rows)
    source = {"kind": "jsonl", "modality": "code", "paths": [str(tmp_path / "a.jsonl")], "max_document_bytes": 100}
    assert run(tmp_path, "tokenizer", sources={"code": source}, tokenizer={"vocab_size": 600, "sample_bytes": 10**9}) == 0
    cut = [row["text"].encode()[:100].decode(errors="ignore").encode() for row in rows]
    training = [text for text in cut if not is_held_out(f"text:{text_hash(text):016x}", 1, 0.2)]
    sample = json.loads((tmp_path / "out/tokenizer/training.json").read_text())["sample"]["code"]
    assert (sample["documents"], sample["bytes"]) == (len(training), sum(map(len, training)))


def test_paths_may_repeat_across_repositories_but_names_may_not(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "repo": f"repo{number}", "path": "setup.py"} for number, row in enumerate(corpus())]
    write_jsonl(ready / "a.jsonl", rows)
    assert run(ready, "shards") == 0
    assert main(["prep", "verify", str(ready / "out")]) == 0
    write_jsonl(ready / "a.jsonl", [*rows, {**rows[7], "text": "another"}])
    capsys.readouterr()
    assert run(ready, "shards", "--force") == 2
    line = only_line(capsys)
    assert "sources.code.id_field: several documents are named 'repo7/setup.py'" in line
    assert not (ready / "out/code/train/manifest.json").exists()


@pytest.mark.parametrize("name", ["tokenizer", "../outside", "a/b", ".hidden", ""])
def test_a_source_is_named_like_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the name becomes a folder"):
        load_config(prep_file(tmp_path, sources={name: {"kind": "stdlib", "part": "code", "modality": "code"}}), PrepConfig)


def test_a_differing_engine_stops_the_run(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "_encode_fast", lambda self, text: self.encode(text)[::-1])
    with pytest.raises(EngineMismatch):
        run(ready, "shards")
    assert not (ready / "out/code/train/manifest.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no document"),
        ([{"text": " \n", "path": "p", "repo": "r"}], "holds no document (1 empty)"),
        ([{"text": "a", "path": "p", "repo": "r"}], "held out"),
    ],
)
def test_empty_corpus(ready: Path, capsys: pytest.CaptureFixture[str], rows: list[dict], message: str) -> None:
    write_jsonl(ready / "a.jsonl", rows)
    assert run(ready, "shards") == 2
    assert message in only_line(capsys)
    assert not (ready / "out/code/train/manifest.json").exists()


def test_bad_line_in_a_worker_is_one_line(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(ready / "a.jsonl", "a") as handle:
        handle.write('{"text": \n')
    assert run(ready, "shards", "workers=2") == 2
    assert f"a.jsonl:{len(corpus()) + 1}: not valid JSON" in only_line(capsys)


def test_missing_file_and_missing_tokenizer(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(ready / "out" / "tokenizer")
    assert run(ready, "shards") == 2
    assert "codemix prep tokenizer" in only_line(capsys)
    (ready / "a.jsonl").unlink()
    assert run(ready, "tokenizer") == 2
    assert "no such file or folder" in only_line(capsys)


def test_tokenizer_that_does_not_match_the_shards(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ready, "shards") == 0
    capsys.readouterr()
    assert run(ready, "tokenizer", "tokenizer.vocab_size=1100") == 2
    assert "made with other settings" in only_line(capsys)
    assert run(ready, "tokenizer", "tokenizer.vocab_size=1100", "--force") == 0
    capsys.readouterr()
    assert run(ready, "shards") == 2
    assert "was made with another tokenizer" in capsys.readouterr().err


def test_tokenizer_again_and_its_record(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(ready / "out" / "tokenizer")
    assert run(ready, "tokenizer") == 0
    record = json.loads((ready / "out/tokenizer/training.json").read_text())
    assert record["fingerprint"] == Tokenizer.load(ready / "out/tokenizer").fingerprint
    largest = max(len(row["text"].encode()) for row in corpus())
    assert 300_000 <= record["sample"]["code"]["bytes"] < 300_000 + largest
    before = tree(ready / "out")
    assert run(ready, "tokenizer") == 0
    assert "already there" in capsys.readouterr().out
    shutil.rmtree(ready / "out")
    assert run(ready, "tokenizer", "workers=2") == 0
    assert tree(ready / "out") == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.vocab_size=900000", "largest possible"),
        ("tokenizer.vocab_size=200", "too small"),
        ("tokenizer.weights={prose: 1}", "no source of that name"),
        ("tokenizer.weights={code: -1.0}", "negative"),
        ("tokenizer.weights={code: 0.0}", "all are 0"),
    ],
)
def test_impossible_tokenizers(ready: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    shutil.rmtree(ready / "out" / "tokenizer")
    assert run(ready, "tokenizer", override) == 2
    assert message in only_line(capsys)
    assert not (ready / "out" / "tokenizer").exists()


def test_held_out_documents_are_unseen_by_the_tokenizer(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(ready / "out" / "tokenizer")
    seen: list[str] = []
    monkeypatch.setattr("data_prep.tokenizer_command.train_tokenizer", lambda texts, *how: _remember(seen, texts, *how))
    assert run(ready, "tokenizer", "tokenizer.sample_bytes=100000000") == 0
    held_out = {text_hash(row["text"].encode()) for row in corpus() if is_held_out(row["repo"], 1, 0.2)}
    trained = {text_hash(row["text"].encode()) for row in corpus() if not is_held_out(row["repo"], 1, 0.2)}
    assert {text_hash(text.encode()) for text in seen} == trained
    assert held_out - trained


def _remember(seen: list[str], texts: list[str], size: int, model: str) -> bytes:
    seen += texts
    return train_tokenizer(texts, size)


def test_help_and_unknown_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prep"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert main(["prep", "shard"]) == 2
    assert "did you mean 'shards'" in only_line(capsys)
    assert main(["prep", "shards"]) == 2
