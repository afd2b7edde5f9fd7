"""The command: verbs, one-line errors, exit codes, and nothing imported before it is needed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from megatron_codemix import cli


def codemix(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "megatron_codemix.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_help_names_every_verb_and_imports_no_torch():
    script = "import sys; from megatron_codemix.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_there(verb):
    module, function = cli.VERBS[verb][0].split(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(cli._resolve(verb)), function


@pytest.mark.parametrize("verb, said", [("train", "codemix train: whoever read its output has gone"), ("doctor", "")])
def test_work_whose_reader_has_gone_is_not_done(verb, said):
    """`codemix train … | head && codemix convert …` must not go on with what was not trained."""
    script = f"""
import os, sys, types
from megatron_codemix import cli
sys.modules["told"] = types.SimpleNamespace(main=lambda arguments: print("x" * 100_000, flush=True))
cli.VERBS[{verb!r}] = ("told:main", "")
sys.exit(cli.main([{verb!r}]))
"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["trian"], "did you mean 'train'?"),
        (["frobnicate"], "one of: prep, check, train"),
        (["train"], "--help"),
        (["train", "nowhere.yaml"], "no such file"),
        (["check", "nowhere.yaml"], "no such file"),
        (["prep", "shards", "nowhere.yaml"], "no such file"),
        (["prep", "frobnicate"], "frobnicate"),
        (["eval", "nowhere"], "nowhere|--output"),
        (["convert", "to-hf", "nowhere", "out"], "nowhere"),
        (["audit", "nowhere"], "nowhere"),
        (["study", "run", "nowhere.yaml"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected):
    done = codemix(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert any(part in lines[0] for part in expected.split("|"))


def test_ctrl_c_is_one_line_and_the_shells_exit_code(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_resolve", lambda verb: interrupt)
    assert cli.main(["train", "run.yaml"]) == 130
    assert capsys.readouterr().err == "codemix train: interrupted\n"
