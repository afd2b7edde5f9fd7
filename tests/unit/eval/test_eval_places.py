"""Where results go: a place that cannot be written, or that holds something else, is found before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import run as eval_run
from eval.outcome import Outcome
from eval.results import ResultsFolder, check_writable, holding
from megatron_codemix import cli
from megatron_codemix.errors import UserError


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str]]:
    """run(*words) → exit code, stderr of `codemix eval`."""

    def call(*words) -> tuple[int, str]:
        capsys.readouterr()  # of the fixtures
        code = cli.main(["eval", *map(str, words)])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def documents(write_rows) -> Path:
    return write_rows("documents.jsonl", [{"text": "the and"}])


def one_line(code: int, said: str) -> str:
    assert code == 2, said
    (line,) = said.strip().splitlines()
    return line


@pytest.mark.parametrize("extra", [(), ("--no-cache",)])
def test_an_output_that_cannot_be_written_is_told_before_any_work(run, tmp_path, model_folder, documents, monkeypatch, extra):
    monkeypatch.setattr(eval_run, "open_engine", lambda *_: pytest.fail("the model was loaded first"))
    (tmp_path / "file").write_text("")
    rest = ("--bits-per-byte", f"code={documents}", "--device", "cpu", *extra)
    line = one_line(*run(model_folder, "--output", tmp_path / "file" / "x", *rest))
    assert f"{tmp_path / 'file' / 'x'}: cannot be written ({tmp_path / 'file'} is a file); give another --output" in line
    if Path("/proc").is_dir():
        line = one_line(*run(model_folder, "--output", "/proc/nowhere", *rest))
        assert line.startswith("codemix eval: /proc/nowhere: cannot be written (") and "give another --output" in line


def test_checking_a_place_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_samples_are_not_run_for_an_output_that_cannot_be_written(run, tmp_path, write_rows, monkeypatch):
    monkeypatch.setattr("eval.code.samples.run_programs", lambda *_: pytest.fail("programs were run first"))
    problem = {"task_id": "a/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    problems = write_rows("p.jsonl", [{**problem, "test": "def check(f):\n    assert f() == 1\n"}])
    samples = write_rows("s.jsonl", [{"task_id": "a/0", "completion": "    return 1\n"}])
    line = one_line(*run("samples", problems, samples, "--output", problems / "x.jsonl"))
    assert f"cannot be written ({problems} is a file)" in line
    assert "is a folder; --output names a file" in one_line(*run("samples", problems, samples, "--output", tmp_path))


def test_a_model_directory_receives_no_results(run, model_folder, make_model, documents):
    other = make_model(seed=8)
    before = sorted(other.rglob("*"))
    for output in (other, model_folder):
        line = one_line(*run(model_folder, "--output", output, "--bits-per-byte", f"code={documents}", "--device", "cpu"))
        assert f"{output}: holds a model (config.json); give another --output" in line
    assert sorted(other.rglob("*")) == before


def test_results_of_another_model_are_named_before_they_go(run, tmp_path, model_folder, make_model, documents):
    other, rest = make_model(seed=8), ("--output", tmp_path / "out", "--bits-per-byte", f"code={documents}", "--device", "cpu")
    assert run(other, *rest)[0] == 0
    code, said = run(model_folder, *rest)
    assert code == 0
    assert f"{tmp_path / 'out'}: holds results of another model ({other}); they are replaced" in said
    assert "another model" not in run(model_folder, *rest)[1]


def test_two_commands_do_not_write_into_one_folder(run, tmp_path, model_folder, documents):
    arguments = (model_folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}", "--device", "cpu")
    with ResultsFolder(tmp_path / "out").held():
        line = one_line(*run(*arguments))
        assert f"{tmp_path / 'out'}: another command writes results there" in line
    assert not (tmp_path / "out").exists(), "nothing came of it"
    assert run(*arguments)[0] == 0


def test_what_another_command_has_finished_meanwhile_is_seen(tmp_path):
    model = {"sha256": "1", "definition_sha256": "2", "path": "m"}
    first, second = ResultsFolder(tmp_path / "out"), ResultsFolder(tmp_path / "out")
    with first.held():
        assert first.results is None
        entry = first.write_task("code", "generation", Outcome({"x": 1.0}, [{"id": "0", "score": 1.0}]), "f", {})
        first.write(model, {}, {"code": entry}, whole=True)
    with second.held():
        assert second.results is not None and second.finished("code", "f") == entry


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    folder, opened = tmp_path / "out", []
    real = os.open

    def remove_first(path, flags, *more):
        descriptor = real(path, flags, *more)
        if Path(path) == folder and not opened:
            opened.append(descriptor)
            folder.rmdir()  # as a command does of which nothing came
        return descriptor

    monkeypatch.setattr("eval.results.os.open", remove_first)
    with holding(folder):
        assert folder.is_dir() and opened
        with pytest.raises(UserError, match="another command writes results there"), holding(folder):
            pass
    assert not folder.exists()


@pytest.mark.parametrize("long", ["x" * 300, "/".join(["x" * 200] * 30), "é" * 200])
def test_names_that_no_file_can_have_are_one_line(run, tmp_path, model_folder, documents, long):
    rest, output = ("--bits-per-byte", f"code={documents}", "--device", "cpu"), tmp_path / "out"
    table = tmp_path / "tasks.yaml"
    table.write_text(f"tasks:\n  say: {{kind: bits_per_byte, data: {long}.jsonl}}\n", encoding="utf-8")
    for words in (
        (model_folder, "--output", output, "--tasks", long),
        (model_folder, "--output", output, "--tasks", long + ".yaml"),
        (model_folder, "--output", output, "--tasks", table),
        (model_folder, "--output", output, "--bits-per-byte", f"code={long}"),
        (model_folder, "--output", tmp_path / long, *rest),
        (tmp_path / long, "--output", output, *rest),
        (long, "--output", output, *rest),
        ("compare", long, long),
        ("samples", long, long),
        ("samples", documents, documents, "--output", long),
        ("judge", long, long, "--prompts", long, "--output", output, "--judge", long),
    ):
        line = one_line(*run(*words))
        assert line.startswith("codemix eval: ") and "too long" in line, words
    name = "x" * 201
    table.write_text(f"tasks:\n  {name}: {{kind: bits_per_byte, data: {documents}}}\n")
    for words in (("--bits-per-byte", f"{name}={documents}"), ("--tasks", table)):
        assert "200 at most" in one_line(*run(model_folder, "--output", output, *words))
    assert not output.exists()


def test_a_zero_byte_is_no_part_of_a_name(run, tmp_path, model_folder, documents):
    for words in (("a\0b",), (model_folder, "--output", "a\0b"), ("samples", "a\0b", documents), (model_folder, "--tasks", "piqa\0")):
        assert "holds a zero byte; leave it out" in one_line(*run(*words))
    table = tmp_path / "tasks.yaml"
    table.write_text('tasks:\n  say: {kind: bits_per_byte, data: "a\\0b.jsonl"}\n')
    assert "no such file" in one_line(*run(model_folder, "--output", tmp_path / "out", "--tasks", table))


def test_an_interrupted_run_says_how_to_go_on(run, tmp_path, model_folder, documents, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_run, "open_engine", interrupt)
    code, said = run(model_folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}", "--device", "cpu")
    assert code == 130
    assert said.strip() == "codemix eval: interrupted; what was finished is kept, the same command goes on"


def test_a_misspelt_verb_is_no_model(run, tmp_path):
    assert one_line(*run("compre", tmp_path, tmp_path)) == "codemix eval: compre: neither a folder nor a verb; did you mean 'compare'?"


def test_a_count_that_is_none_names_its_option(run, tmp_path):
    assert "argument --limit: '0' is not a whole number of at least 1" in one_line(*run(tmp_path, "--output", "x", "--limit", "0"))


def test_a_suite_of_which_a_part_is_there_says_what_is(tmp_path, write_rows):
    write_rows("piqa.jsonl", [{"x": 1}])
    with pytest.raises(UserError) as caught:
        eval_run.gather([], ["piqa", "boolq"], tmp_path, False)
    missing, found = caught.value.problems
    assert (
        missing.startswith(f"boolq: its data is not found below {tmp_path}: looked for ")
        and "; give another --data-dir, or --hub" in missing
    )
    assert found == f"of 2 tasks 1 is found below {tmp_path}: --tasks piqa measures it alone"


def test_all_unknown_names_are_told_at_once_and_commas_are_explained(tmp_path):
    with pytest.raises(UserError) as caught:
        eval_run.gather([], ["piqua", "humanevl", "piqa,boolq"], tmp_path, False)
    first, second, third = caught.value.problems
    assert first == "--tasks piqua: neither a task, a suite nor a file; did you mean 'piqa'?"
    assert "did you mean 'humaneval'?" in second
    assert third == "--tasks piqa,boolq: neither a task, a suite nor a file; names stand apart: --tasks piqa boolq"
