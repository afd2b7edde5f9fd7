"""`codemix prep fetch` from local copies: whole files, continued where it was killed; and one line for what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from data_prep import fetch as fetch_module
from data_prep.documents import Tally
from data_prep.fetch import main
from data_prep.presets import PRESETS
from data_prep.sources import open_source
from megatron_codemix.config import SourceSpec
from megatron_codemix.errors import JobError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    for shard in range(3):
        rows = [
            {"content": f"x_{shard}_{i} = 1\n" + "#" * 80, "repo_name": f"r{i % 3}", "path": "a.py", "license": "mit"} for i in range(40)
        ]
        (tmp_path / "copy" / f"train-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "copy"


def run(copy: Path, output: Path, tokens: float, preset: str = "codeparrot-clean", *more: str) -> int:
    return main([preset, "--tokens", str(tokens), "--output", str(output), "--from", str(copy), "--bytes-per-token", "1", *more])


def texts(output: Path) -> list[str]:
    spec = SourceSpec(kind="jsonl", paths=[output], rows="the-stack", modality="code")
    source = open_source("s", spec)
    assert source.inputs()
    return [document.text for chunk in source.chunks() for document in chunk.documents(Tally())]


def test_fetches_what_was_asked_for(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(copy, tmp_path / "out", 2000) == 0
    found = texts(tmp_path / "out")
    assert 2000 <= sum(map(len, found)) < 2100
    assert found[0].startswith("x_0_0 = 1")
    out = capsys.readouterr().out
    assert "about 2," in out
    assert "rows: the-stack, modality: code" in out
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(copy, tmp_path / "out", 2000) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    # more of it, then more than there is
    assert run(copy, tmp_path / "out", 3000) == 0
    assert texts(tmp_path / "out")[: len(found)] == found
    assert run(copy, tmp_path / "out", 1e9) == 0
    assert "that is all there is" in capsys.readouterr().out
    everything = texts(tmp_path / "out")
    assert len(everything) == len(set(everything)) == 120


def test_a_killed_fetch_continues_as_if_it_had_not_been(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_FILE_BYTES", 1000)
    run(copy, tmp_path / "whole", 7000)
    written = fetch_module._write

    class Killed(BaseException):
        pass

    for stop in range(1, 4):
        calls = []

        def killed(handle, rows, enough, bar, stop: int = stop, calls: list = calls):
            calls.append(1)
            result = written(handle, rows, enough, bar)
            if len(calls) == stop:
                raise Killed
            return result

        monkeypatch.setattr(fetch_module, "_write", killed)
        with pytest.raises(Killed):
            run(copy, tmp_path / "out", 7000)
    monkeypatch.setattr(fetch_module, "_write", written)
    run(copy, tmp_path / "out", 7000)
    whole, out = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert whole.keys() == out.keys()
    assert all(whole[name] == out[name] for name in whole if name.endswith(".zst"))
    assert len(out) == 8


def test_another_fetch_or_changed_files_are_refused(copy: Path, tmp_path: Path) -> None:
    run(copy, tmp_path / "out", 500)
    with pytest.raises(UserError, match="holds a fetch of codeparrot-clean"):
        run(copy, tmp_path / "out", 500, "the-stack")
    [file] = (tmp_path / "out").glob("*.zst")
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is gone or was changed"):
        run(copy, tmp_path / "out", 500)
    with pytest.raises(UserError, match=r"is not empty and holds no fetch\.json"):
        run(copy, copy, 500)


def test_only_some_rows(copy: Path, tmp_path: Path) -> None:
    run(copy, tmp_path / "out", 1e6, "codeparrot-clean", "--only", "repo_name=r0", "--only", "repo_name=r2")
    assert len(texts(tmp_path / "out")) == 3 * (14 + 13)
    record = json.loads((tmp_path / "out" / "fetch.json").read_text())
    assert record["skipped"] == {"not selected by repo_name": 3 * 13}
    with pytest.raises(UserError, match="holds a fetch of"):
        run(copy, tmp_path / "out", 1e6)
    with pytest.raises(UserError, match="must be KEY=VALUE"):
        run(copy, tmp_path / "other", 1e6, "codeparrot-clean", "--only", "r0")


def test_a_full_disk(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module, "_write", full)
    with pytest.raises(JobError, match=r"cannot be written \(No space left on device\); make room"):
        run(copy, tmp_path / "out", 500)
    assert not list((tmp_path / "out").iterdir())


def test_damage_breaks_off_with_what_is_whole_kept(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_FILE_BYTES", 1000)
    good = (copy / "train-1.jsonl").read_bytes()
    (copy / "train-1.jsonl").write_bytes(good[:-30])
    with pytest.raises(JobError, match=r"broke off .*give the same command again"):
        run(copy, tmp_path / "out", 1e6)
    assert texts(tmp_path / "out")
    (copy / "train-1.jsonl").write_bytes(good)
    run(copy, tmp_path / "out", 1e6)
    assert len(set(texts(tmp_path / "out"))) == 120


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.access == "withdrawn"])
def test_withdrawn_data_says_what_to_do(preset: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched: .*--from, or take") as caught:
        main([preset, "--tokens", "1e6", "--output", str(tmp_path / "out")])
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_gated_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise RuntimeError("401 Client Error. Access to dataset bigcode/the-stack is restricted.")

    monkeypatch.setattr(fetch_module.huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match=r"the-stack .bigcode/the-stack. cannot be opened \(.*restricted.*accept the terms.*hf auth login"):
        main(["the-stack", "--tokens", "1e6", "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("arguments", [["nope"], ["c4", "--tokens", "-1"], ["c4", "--tokens", "nan"], ["c4", "--bytes-per-token", "0"]])
def test_wrong_arguments(arguments: list[str], tmp_path: Path) -> None:
    tokens = [] if "--tokens" in arguments else ["--tokens", "1e6"]
    with pytest.raises(UserError):
        main([*arguments, *tokens, "--output", str(tmp_path / "out")])


def test_presets_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-access.md").read_text()
    for name, preset in PRESETS.items():
        assert f"`{name}`" in page
        assert preset.dataset in page
