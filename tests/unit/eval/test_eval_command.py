"""`codemix eval` from end to end: the files it writes, what it keeps, and how it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval import results
from eval import run as eval_run
from eval.engine import Engine
from megatron_codemix import cli

DOCUMENTS = [{"id": "a.py", "text": "def f(x):\n    return x\n"}, {"id": "b.py", "text": "the and " * 20}, {"text": "ż"}]


@pytest.fixture
def run(tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) → exit code, stdout, stderr of `codemix eval`."""

    def call(*arguments) -> tuple[int, str, str]:
        code = cli.main(["eval", *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def documents(write_rows) -> Path:
    return write_rows("documents.jsonl", DOCUMENTS)


@pytest.fixture
def tasks(tmp_path, write_rows) -> Path:
    prompts = write_rows("prompts.jsonl", [{"prompt": "the", "reference": "x"}, {"prompt": "def"}])
    questions = write_rows("questions.jsonl", [{"query": "the", "choices": ["a", "b c"], "gold": 1}] * 3)
    code = write_rows("code.jsonl", [{"text": "x = 1\ny = 2\n"}])
    path = tmp_path / "tasks.yaml"
    options = {
        "say": {"kind": "generation", "data": str(prompts), "max_new_tokens": 4},
        "choice": {"kind": "multiple_choice", "data": str(questions)},
        "python": {"kind": "python_parses", "data": str(code), "prompt_lines": 1, "max_new_tokens": 4},
    }
    path.write_text(json.dumps({"tasks": options}))
    return path


def test_results_follow_the_written_format(run, tmp_path, codemix_folder, documents, tasks):
    out = tmp_path / "out"
    code, shown, _ = run(codemix_folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)
    assert code == 0
    results = json.loads((out / "results.json").read_text())
    assert results["format_version"] == 2
    assert results["model"]["path"] == str(codemix_folder)
    assert len(results["model"]["sha256"]) == 64
    assert results["model"]["codemix"] == {"format_version": 1}
    assert results["settings"]["start_id"] == results["settings"]["end_id"] == 2
    assert list(results["tasks"]) == ["code", "say", "choice", "python"]
    for name, entry in results["tasks"].items():
        items = [json.loads(line) for line in (out / entry["items"]).read_text().splitlines()]
        assert entry["items"] == f"items/{name}.jsonl"
        assert entry["num_items"] == len(items) > 0
        assert all("id" in item for item in items)
        assert name in shown
    metrics = results["tasks"]["code"]["metrics"]
    assert {"bits_per_byte", "nats", "bytes", "tokens", "documents"} <= set(metrics)
    items = [json.loads(line) for line in (out / "items" / "code.jsonl").read_text().splitlines()]
    assert [item["id"] for item in items] == ["a.py", "b.py", "3"]
    assert set(items[0]) == {"id", "input", "score", "nats", "bytes", "tokens"}
    assert sum(item["nats"] for item in items) == pytest.approx(metrics["nats"])
    assert f"{metrics['bits_per_byte']:.4f}" in shown
    assert not (out / "unfinished.json").exists()
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


def test_a_second_run_keeps_what_is_done(run, tmp_path, model_folder, documents, tasks, monkeypatch):
    out = tmp_path / "out"
    arguments = (model_folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)
    assert run(*arguments)[0] == 0
    before = (out / "results.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "open_engine", lambda *_: pytest.fail("nothing is to be measured"))
        code, _, said = run(*arguments, "--batch-tokens", 7)
    assert code == 0
    assert "code: " in said
    assert "kept" in said
    assert (out / "results.json").read_bytes() == before


def measured(monkeypatch, run, *arguments) -> list[str]:
    """Names of the tasks that a run measures anew."""
    names: list[str] = []
    write = eval_run.ResultsFolder.write_task

    def noting(self, name, *rest):
        names.append(name)
        return write(self, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(eval_run.ResultsFolder, "write_task", noting)
        assert run(*arguments)[0] == 0
    return names


def test_what_changed_is_measured_anew(run, tmp_path, make_model, documents, tasks, write_rows, monkeypatch):
    out = tmp_path / "out"
    folder = make_model(seed=1)
    everything = ["code", "say", "choice", "python"]
    arguments = (folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)
    assert measured(monkeypatch, run, *arguments) == everything
    assert measured(monkeypatch, run, *arguments) == []
    write_rows("questions.jsonl", [{"query": "the", "choices": ["a", "b c"], "gold": 0}])
    assert measured(monkeypatch, run, *arguments) == ["choice"]
    (out / "items" / "say.jsonl").write_text("{}\n")
    assert measured(monkeypatch, run, *arguments) == ["say"]
    assert measured(monkeypatch, run, *arguments, "--context", 16) == everything
    assert measured(monkeypatch, run, *arguments, "--limit", 1, "--context", 16) == everything
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert measured(monkeypatch, run, *arguments) == everything
    (out / "results.json").write_text("{")
    assert measured(monkeypatch, run, *arguments) == everything
    fewer = arguments[:-2]
    assert measured(monkeypatch, run, *fewer) == []
    assert list(json.loads((out / "results.json").read_text())["tasks"]) == ["code"]
    assert sorted(path.name for path in (out / "items").iterdir()) == ["code.jsonl"], "no items beside results that lack them"


def test_a_copied_model_is_the_same_model(run, tmp_path, model_folder, documents, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    rest = ("--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")
    assert measured(monkeypatch, run, model_folder, *rest) == ["code"]
    assert measured(monkeypatch, run, copy, *rest) == []


def test_a_killed_run_goes_on_where_it_stopped(run, tmp_path, model_folder, documents, tasks, monkeypatch):
    out = tmp_path / "out"
    arguments = (model_folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", die)
        assert run(*arguments)[0] == 130
    assert (out / "unfinished.json").exists()
    assert not (out / "results.json").exists()
    assert measured(monkeypatch, run, *arguments) == ["say", "choice", "python"]
    assert (out / "results.json").exists()
    assert not (out / "unfinished.json").exists()


def test_a_folder_of_another_model_is_not_taken_for_this_ones(run, tmp_path, make_model, documents, monkeypatch):
    """Killed when all is measured and results.json, still the other model's, is not replaced yet."""
    out, rest = tmp_path / "out", ("--bits-per-byte", f"code={documents}")
    one, other = make_model(seed=3), make_model(seed=4)
    assert run(one, "--output", out, *rest)[0] == 0
    assert run(other, "--output", tmp_path / "expected", *rest)[0] == 0
    write = eval_run.ResultsFolder.write

    def die(self, *arguments, whole):
        if whole:
            raise KeyboardInterrupt
        return write(self, *arguments, whole=whole)

    with monkeypatch.context() as patch:
        patch.setattr(eval_run.ResultsFolder, "write", die)
        assert run(other, "--output", out, *rest)[0] == 130
    assert run(other, "--output", out, *rest)[0] == 0
    assert (out / "results.json").read_bytes() == (tmp_path / "expected" / "results.json").read_bytes()
    assert not (out / "unfinished.json").exists()


def test_another_record_of_the_conversion_is_recorded_and_nothing_is_measured(run, tmp_path, make_model, documents, monkeypatch):
    folder, rest = make_model(codemix={"format_version": 1, "step": 1}), ("--bits-per-byte", f"code={documents}")
    assert run(folder, "--output", tmp_path / "out", *rest)[0] == 0
    (folder / "codemix.json").write_text(json.dumps({"format_version": 1, "step": 2}))
    assert measured(monkeypatch, run, folder, "--output", tmp_path / "out", *rest) == []
    assert json.loads((tmp_path / "out" / "results.json").read_text())["model"]["codemix"]["step"] == 2
    (folder / "codemix.json").unlink()  # then texts stand behind BOS
    assert measured(monkeypatch, run, folder, "--output", tmp_path / "out", *rest) == ["code"]


def test_items_of_tasks_that_a_killed_run_finished_do_not_stay(run, tmp_path, model_folder, documents, tasks, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(model_folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)[0] == 130
    assert run(model_folder, "--output", out, "--bits-per-byte", f"other={documents}")[0] == 0
    assert [path.name for path in (out / "items").iterdir()] == ["other.jsonl"]


@pytest.mark.parametrize("what", ["atomic_file", "write_json"])
def test_a_full_disk_is_one_line_and_what_was_finished_is_kept(run, tmp_path, model_folder, documents, tasks, monkeypatch, what):
    out = tmp_path / "out"
    arguments = (model_folder, "--output", out, "--bits-per-byte", f"code={documents}", "--tasks", tasks)
    write, calls = getattr(results, what), []

    def full(*given):
        calls.append(given)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(results, what, full)
        code, _, said = run(*arguments)
    assert code == 1
    (line,) = [line for line in said.splitlines() if "No space left" in line]
    assert line.startswith(f"codemix eval: {out}: cannot be written (No space left on device)") and "Traceback" not in said
    assert not (out / "results.json").exists()
    assert "code" not in measured(monkeypatch, run, *arguments)


def refused(run, *arguments) -> str:
    """The one line of a run that the user has to mend."""
    code, shown, said = run(*arguments)
    assert code == 2, said
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("codemix eval: ")
    assert shown == ""
    return lines[0]


def test_a_folder_that_is_no_model(run, tmp_path, model_folder, documents):
    rest = ("--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")

    def broken(change: Callable[[Path], object]) -> str:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model_folder, folder)
        change(folder)
        return refused(run, folder, *rest)

    assert "no such folder" in refused(run, tmp_path / "none", *rest)
    assert "holds no config.json" in broken(lambda folder: (folder / "config.json").unlink())
    assert "config.json" in broken(lambda folder: (folder / "config.json").write_text("{"))
    assert "names no model_type" in broken(lambda folder: (folder / "config.json").write_text("{}"))
    assert "cannot be loaded" in broken(lambda folder: (folder / "config.json").write_text('{"model_type": "nothing"}'))
    assert "no *.safetensors" in broken(lambda folder: (folder / "model.safetensors").unlink())
    assert "holds no tokenizer" in broken(lambda folder: (folder / "tokenizer.json").unlink())
    assert "tokenizer cannot be loaded" in broken(lambda folder: (folder / "tokenizer.json").write_text("{"))
    foreign = {"model_type": "strange", "auto_map": {"AutoConfig": "code.StrangeConfig", "AutoModelForCausalLM": "code.Strange"}}

    def with_code(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(foreign))
        (folder / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")

    assert "cannot be loaded" in broken(with_code)
    assert not (tmp_path / "executed").exists()
    weights = model_folder / "model.safetensors"
    assert "model.safetensors: damaged or truncated" in broken(
        lambda folder: os.truncate(folder / weights.name, weights.stat().st_size // 2)
    )
    assert not (tmp_path / "out").exists()


def test_missing_or_foreign_weights_are_not_filled_at_random(run, tmp_path, make_model, documents):
    folder = make_model(seed=2)
    rest = ("--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1.mlp.up" not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing" in refused(run, folder, *rest)
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "mismatched" in refused(run, folder, *rest) or "cannot be loaded" in refused(run, folder, *rest)


def test_a_tokenizer_of_another_model(run, tmp_path, make_model, documents):
    folder = make_model(vocab_size=260, bos_token_id=1, eos_token_id=2)
    line = refused(run, folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")
    assert "not this model's tokenizer" in line


def test_no_end_of_text(run, tmp_path, make_model, documents):
    folder = make_model(eos_token_id=None, bos_token_id=None)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            value = json.loads((folder / name).read_text())
            value.pop("eos_token", None)
            (folder / name).write_text(json.dumps(value))
    assert "end-of-text" in refused(run, folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")


def test_contexts_that_are_too_small_or_too_large(run, tmp_path, model_folder, documents, tasks):
    rest = ("--output", tmp_path / "out", "--bits-per-byte", f"code={documents}")
    assert "--context 64: the model takes 32" in refused(run, model_folder, *rest, "--context", 64)
    assert "too small" in refused(run, model_folder, *rest, "--context", 1)
    line = refused(run, model_folder, *rest, "--tasks", tasks, "--context", 4)
    assert "tasks.say.max_new_tokens: 4 leave no room" in line


def test_a_choice_longer_than_the_context(run, tmp_path, model_folder, write_rows):
    data = write_rows("q.jsonl", [{"query": "the", "choices": ["a", "x " * 40], "gold": 0}])
    tasks = tmp_path / "long.yaml"
    tasks.write_text(json.dumps({"tasks": {"long": {"kind": "multiple_choice", "data": str(data)}}}))
    assert "q.jsonl:1: a choice is longer" in refused(run, model_folder, "--output", tmp_path / "out", "--tasks", tasks)


def test_bad_data_is_found_before_anything_is_measured(run, tmp_path, model_folder, documents, tasks, write_rows, monkeypatch):
    write_rows("code.jsonl", [{"text": "x = 1\ny\n"}, {"test": "x"}])
    monkeypatch.setattr(eval_run, "open_engine", lambda *_: pytest.fail("the model was loaded first"))
    line = refused(run, model_folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}", "--tasks", tasks)
    assert "code.jsonl:2: no 'text' in this row" in line
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(run, tmp_path, model_folder, documents, write_rows):
    out = ("--output", tmp_path / "out")
    assert "--output" in refused(run, model_folder, "--bits-per-byte", f"code={documents}")
    assert "nothing to measure" in refused(run, model_folder, *out)
    assert "--limit" in refused(run, model_folder, *out, "--bits-per-byte", f"code={documents}", "--limit", "0")
    assert "no such file" in refused(run, model_folder, *out, "--tasks", tmp_path / "none.yaml")
    empty = write_rows("empty.jsonl", [])
    assert "is empty" in refused(run, model_folder, *out, "--bits-per-byte", f"code={empty}")
    blank = write_rows("blank.jsonl", [{"text": ""}])
    assert "hold no text" in refused(run, model_folder, *out, "--bits-per-byte", f"code={blank}")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(run, model_folder, "--output", tmp_path / "file", "--bits-per-byte", f"code={documents}")
    assert "did you mean --limit?" in refused(run, model_folder, *out, "--bits-per-byte", f"code={documents}", "--limits", "3")


def test_a_gpu_that_is_not_there(run, tmp_path, model_folder, documents, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["eval", str(model_folder), "--output", str(tmp_path / "out"), "--bits-per-byte", f"code={documents}", "--device", "cuda"]
    assert cli.main(arguments) == 2


def test_limit_takes_the_first_rows(run, tmp_path, model_folder, documents):
    assert run(model_folder, "--output", tmp_path / "out", "--bits-per-byte", f"code={documents}", "--limit", 2)[0] == 0
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["code"]
    assert entry["metrics"]["documents"] == 2
