"""The code suite through `codemix eval`, on a tiny model with random weights; `codemix eval samples`."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from eval.code import samples
from eval.code.options import CodeTask
from eval.command import main
from eval.suites import SUITES
from eval.tasks.kinds import KINDS, options_class
from megatron_codemix.errors import UserError

SAMPLES = ["    raise OSError", "    import time\n    time.sleep(10)\n    return 1", "    return input()"]
SAMPLES += ["    return 1", "  return 1", "\treturn 1"]


@pytest.fixture
def data(humaneval_file, mbpp_file):
    return humaneval_file.parent


def test_the_suite_on_a_model(make_model, data, needs_sandbox, tmp_path, capsys):
    model, output = make_model(max_position_embeddings=512), tmp_path / "out"
    command = [str(model), "--output", str(output), "--tasks", "code", "--data-dir", str(data), "--device", "cpu", "--limit", "2"]
    assert main(command) == 0
    results = json.loads((output / "results.json").read_bytes())
    assert list(results["tasks"]) == SUITES["code"]
    shown = capsys.readouterr().out
    for name, entry in results["tasks"].items():
        items = [json.loads(line) for line in (output / entry["items"]).read_bytes().splitlines()]
        assert entry["num_items"] == len(items) > 0 and f"{name}  " in shown
        assert all(len(item["samples"]) == item["n"] == 1 and item["cluster"] for item in items)
        assert sum(value for key, value in entry["metrics"].items() if key.startswith("verdict_")) == len(items)
        assert entry["metrics"]["max_new_tokens"] == 256
        assert entry["data"][0]["rows"] == 2
    kept = (output / "results.json").read_bytes()
    shutil.rmtree(output / "items")
    assert main(command) == 0  # from the cache
    assert json.loads((output / "results.json").read_bytes())["tasks"] == json.loads(kept)["tasks"]


def test_a_model_without_symbols_is_refused_before_anything_is_measured(make_model, data, tmp_path):
    command = [str(make_model(max_position_embeddings=512)), "--output", str(tmp_path / "out"), "--data-dir", str(data)]
    with pytest.raises(UserError, match="has no symbols for infilling"):
        main([*command, "--tasks", "humaneval", "infilling_single_line", "--device", "cpu"])
    assert not (tmp_path / "out" / "items").exists()


def test_infilling_on_a_model_with_symbols(make_model, data, needs_sandbox, tmp_path):
    folder = make_model(max_position_embeddings=512)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for name, id_ in (("<fim_prefix>", 4), ("<fim_suffix>", 5), ("<fim_middle>", 6)):  # in place of bytes that no test writes
        old = next(piece for piece, number in tokenizer["model"]["vocab"].items() if number == id_)
        tokenizer["model"]["vocab"].pop(old)
        tokenizer["model"]["vocab"][name] = id_
        tokenizer["added_tokens"].append(
            {"id": id_, "content": name, "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
        )
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    output = tmp_path / "out"
    tasks = ["infilling_single_line", "infilling_random_span"]
    command = [str(folder), "--output", str(output), "--data-dir", str(data), "--device", "cpu", "--limit", "1"]
    assert main([*command, "--tasks", *tasks]) == 0
    results = json.loads((output / "results.json").read_bytes())["tasks"]
    assert [results[name]["num_items"] for name in tasks] == [3, 10]


def test_every_kind_of_code_task_knows_of_the_flag():
    kinds = [kind for kind, entry in KINDS.items() if entry.module.startswith("eval.code.")]
    assert kinds == ["humaneval", "mbpp", "infilling", "programs"]
    assert all(issubclass(options_class(kind), CodeTask) for kind in kinds)


@pytest.fixture
def example(write_jsonl):
    """The shape of openai/human-eval's example: a prompt that does not parse alone, three of six samples right."""
    test = "def check(candidate):\n    assert candidate() == 1"
    problem = {"task_id": "t/0", "prompt": "def one():\n", "canonical_solution": "    return 1", "test": test, "entry_point": "one"}
    rows = [{"task_id": "t/0", "completion": text} for text in SAMPLES]
    return write_jsonl("problems.jsonl", [problem]), write_jsonl("samples.jsonl", rows)


def test_samples_written_elsewhere(example, needs_sandbox, tmp_path, capsys):
    output = tmp_path / "judged.jsonl"
    assert main(["samples", *map(str, example), "--output", str(output), "--seconds", "1", "--cache", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("pass@1  0.4999999999999999  ± ")
    assert shown[1:6] == ["problems  1", "samples  6", "verdict_failed_a_test  2", "verdict_passed  3", "verdict_timed_out  1"]
    judged = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [one["verdict"] == "passed" for one in judged] == [False] * 3 + [True] * 3
    assert main(["samples", *map(str, example), "--seconds", "1", "--k", "1", "6", "--cache", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("pass@6  1.0  ± ")


def test_samples_of_mbpp_and_of_infilling(mbpp_file, write_jsonl, needs_sandbox, capsys):
    rows = [json.loads(line) for line in mbpp_file.read_text().splitlines()]
    written = [{"task_id": row["task_id"], "completion": row["code"]} for row in rows] + [{"task_id": 2, "completion": "x = 1"}]
    assert main(["samples", str(mbpp_file), str(write_jsonl("s.jsonl", written))]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"pass@1  {5.5 / 6}  ± ")
    gap = {"task_id": "g", "prompt": "def f():\n    return ", "suffix": "\n", "canonical_solution": "1", "entry_point": "f"}
    gaps = write_jsonl("gaps.jsonl", [gap | {"test": "def check(c):\n    assert c() == 1\n"}])
    fills = write_jsonl("fills.jsonl", [{"task_id": "g", "completion": text} for text in ("1", "2 - 1", "2", "")])
    assert main(["samples", str(gaps), str(fills)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("pass@1  0.5  ± ")


def test_samples_for_a_part_of_the_problems(example, write_jsonl, needs_sandbox, tmp_path, capsys):
    problems, rows = example
    whole = [json.loads(problems.read_text()) | {"task_id": f"t/{n}"} for n in range(3)]
    three, output = write_jsonl("three.jsonl", whole), tmp_path / "judged.jsonl"
    with pytest.raises(UserError, match=r"samples\.jsonl: 2 of 3 problems have no sample, 't/1' the first; .*--partial"):
        main(["samples", str(three), str(rows), "--output", str(output)])
    assert not output.exists()
    some = write_jsonl(
        "some.jsonl", [{"task_id": f"t/{n}", "completion": text} for n in (0, 2) for text in ("    return 1", "    return n")]
    )
    command = ["samples", str(three), str(some), "--partial", "--k", "1", "2", "--output", str(output)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pass@1  0.5  ± 0.0000  [") and lines[0].endswith("]  2 of 3 problems")
    assert lines[1].startswith("pass@2  1.0  ± ") and lines[1].endswith("  2 of 3 problems")
    assert lines[2:4] == ["problems  2 of 3", "samples  4"]
    assert all(json.loads(line)["partial"] == "2 of 3 problems" for line in output.read_bytes().splitlines())
    both = write_jsonl("both.jsonl", [{"task_id": f"t/{n}", "completion": "    return 1"} for n in range(3)])
    assert main(["samples", str(three), str(both), "--output", str(output)]) == 0
    assert "problems  3\n" in capsys.readouterr().out
    assert "partial" not in output.read_text()


def test_what_samples_refuses(example, write_jsonl, tmp_path):
    problems, rows = example
    with pytest.raises(UserError, match=r"--k 10: the problem 't/0' has 6 samples only"):
        samples.main([str(problems), str(rows), "--k", "10"])
    other = write_jsonl("other.jsonl", [{"task_id": "t/1", "completion": "x"}])
    with pytest.raises(UserError, match=r"other\.jsonl:1: the problem 't/1' is not in"):
        samples.main([str(problems), str(other)])
    with pytest.raises(UserError, match=r"samples\.jsonl:1: is no problem"):
        samples.main([str(rows), str(rows)])
    for seconds in ("0", "inf", "nan", "1e300"):
        with pytest.raises(UserError, match=f"^--seconds {re.escape(str(float(seconds)))}: give more than 0, and less than a million$"):
            samples.main([str(problems), str(rows), "--seconds", seconds])
    with pytest.raises(UserError, match="whole number of at least 1"):
        samples.main([str(problems), str(rows), "--k", "0"])
    twice = write_jsonl("twice.jsonl", [json.loads(problems.read_text())] * 2)
    with pytest.raises(UserError, match=r"twice\.jsonl:2: the problem 't/0' is there twice"):
        samples.main([str(twice), str(rows)])
