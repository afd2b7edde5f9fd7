"""The conversion of a chain: done once for each checkpoint, never over what somebody else has put there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_codemix.errors import UserError
from megatron_codemix.slurm import conversion
from megatron_codemix.slurm.arrays import is_done


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path / "run", 10)
    return tmp_path / "run"


def save(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"run": "first", "step": step, "plan": "p"}))


def converted(out: Path, step: int, dtype: str = "fp32", run: str = "first") -> None:
    out.mkdir()
    (out / "codemix.json").write_text(json.dumps({"run": run, "step": step, "plan": "p", "dtype": dtype}))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of the conversions; each is made from the newest checkpoint, and refuses a folder that is there, as the real one does."""
    found: list[list[str]] = []

    def convert(command: list[str], check: bool) -> SimpleNamespace:
        words = command[command.index("to-hf") + 1 :]
        found.append(words)
        source, out = Path(words[0]), Path(words[1])
        if out.exists():
            return SimpleNamespace(returncode=2)
        converted(out, max(int(path.name[5:]) for path in (source / "checkpoints").iterdir()), words[3])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", convert)
    return found


def test_each_checkpoint_is_converted_once(run: Path, commands: list[list[str]]) -> None:
    out = run / "hf"
    assert conversion.run([str(run), str(out)], {}) == 0 and conversion.run([str(run), str(out)], {}) == 0
    assert commands == [[str(run), str(out), "--dtype", "fp32"]]
    unit = conversion._unit(run, out, ["--hf-dtype", "fp32"])
    assert is_done(run / "slurm", unit)
    save(run, 20)
    assert not is_done(run / "slurm", conversion._unit(run, out, ["--hf-dtype", "fp32"]))
    assert conversion.run([str(run), str(out)], {}) == 0
    assert json.loads((out / "codemix.json").read_text())["step"] == 20
    assert json.loads((run / "hf.step-10" / "codemix.json").read_text())["step"] == 10


def test_one_that_was_ended_before_it_left_word_is_taken_for_done(run: Path, commands: list[list[str]]) -> None:
    converted(run / "hf", 10)
    assert conversion.run([str(run), str(run / "hf")], {}) == 0
    assert commands == [] and is_done(run / "slurm", conversion._unit(run, run / "hf", ["--hf-dtype", "fp32"]))


def test_what_others_put_there_stays(run: Path, commands: list[list[str]]) -> None:
    for number, there in enumerate(({"dtype": "bf16"}, {"run": "second"})):
        out = run / f"hf{number}"
        converted(out, 10, **there)
        assert conversion.run([str(run), str(out)], {}) == 2 and out.exists()
    (run / "mine").mkdir()
    assert conversion.run([str(run), str(run / "mine")], {}) == 2


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        conversion.run([str(tmp_path), str(tmp_path / "hf")], {})
