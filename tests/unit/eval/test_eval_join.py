"""Results that were measured apart, joined: what one command would have written, or a line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval.results import ResultsFolder
from eval.run import _parser
from megatron_codemix.cli import main
from megatron_codemix.slurm.evaluations import _PLAIN_OPTIONS


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """Two tasks and a domain on one model: `whole` by one command, `first`, `second` and `third` apart."""
    folder = tmp_path_factory.mktemp("join")
    rows = [{"query": f"the {word}", "choices": ["on", "in"], "gold": number % 2} for number, word in enumerate(("def", "at", "it"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "docs.jsonl").write_text(json.dumps({"text": "def the return"}) + "\n")
    for name in ("one", "two"):
        limit = ", limit: 2" if name == "two" else ""
        (folder / f"{name}.yaml").write_text(f"tasks: {{{name}: {{kind: multiple_choice, data: {folder}/rows.jsonl{limit}}}}}\n")
    common = ["eval", str(model_folder), "--processes", "1", "--device", "cpu", "--output"]
    files = [str(folder / "one.yaml"), str(folder / "two.yaml")]
    domain = ["--bits-per-byte", f"text={folder}/docs.jsonl"]
    assert main([*common, str(folder / "whole"), "--tasks", *files, *domain]) == 0
    assert main([*common, str(folder / "first"), *domain]) == 0
    assert main([*common, str(folder / "second"), "--tasks", files[0]]) == 0
    assert main([*common, str(folder / "third"), "--tasks", files[1]]) == 0
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}


def test_joined_parts_are_what_one_command_writes(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [str(measured / name) for name in ("first", "second", "third")]
    assert main(["eval", "join", *parts, "--output", str(tmp_path / "out")]) == 0
    assert "3 tasks of 3 parts" in capsys.readouterr().out
    assert files_of(tmp_path / "out") == files_of(measured / "whole")
    assert main(["eval", "join", *parts[:2], "--output", str(tmp_path / "out")]) == 0  # again, with other parts
    assert sorted(files_of(tmp_path / "out")) == ["items/bits_per_byte.text.jsonl", "items/one.jsonl", "results.json"] or sorted(
        path.stem for path in (tmp_path / "out" / "items").iterdir()
    ) == sorted(json.loads((tmp_path / "out" / "results.json").read_text())["tasks"])


def changed(part: Path, to: Path, **fields: object) -> Path:
    """A copy of a part whose results.json has other fields, as {"a.b": value}."""
    shutil.copytree(part, to)
    value = json.loads((to / "results.json").read_text())
    for path, new in fields.items():
        *above, last = path.split("__")
        place = value
        for name in above:
            place = place[name]
        place[last] = new
    (to / "results.json").write_text(json.dumps(value))
    return to


def test_parts_that_do_not_belong_together_are_refused(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = measured / "first", measured / "second"

    def refused(*parts: Path, output: Path = tmp_path / "out") -> str:
        assert main(["eval", "join", *map(str, parts), "--output", str(output)]) == 2
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
        return told

    assert "other weights" in refused(first, changed(second, tmp_path / "model", model__sha256="0"))
    assert "settings.dtype is bf16, but fp32" in refused(first, changed(second, tmp_path / "dtype", settings__dtype="bf16"))
    assert "another task" in refused(second, changed(second, tmp_path / "task", tasks__one__fingerprint="0"))
    assert "is one of the parts" in refused(first, second, output=first)
    (first / "unfinished.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert "holds no results.json" in refused(second, tmp_path / "empty")
    (first / "unfinished.json").unlink()
    broken = changed(second, tmp_path / "broken")
    with open(next((broken / "items").iterdir()), "ab") as handle:
        handle.write(b"\n")
    assert main(["eval", "join", str(broken), "--output", str(tmp_path / "out")]) == 2
    assert "has changed since it was measured" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_folder_that_is_written_to_is_not_joined_into(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ResultsFolder(tmp_path / "out").held():
        assert main(["eval", "join", str(measured / "first"), "--output", str(tmp_path / "out")]) == 2
    assert "another command writes results there" in capsys.readouterr().err


def test_submit_evaluate_knows_the_options_of_eval() -> None:
    known = {option: action for action in _parser()._actions for option in action.option_strings}
    own = {"-h", "--help", "--output", "--tasks", "--bits-per-byte", "--data-dir", "--processes"}
    assert set(known) == own | set(_PLAIN_OPTIONS)
    for option, settings in _PLAIN_OPTIONS.items():
        assert settings.get("choices") == known[option].choices
