"""`codemix eval compare`: what is compared, what is refused, what is written."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eval.compare.command import main
from eval.compare.comparison import WHAT_THIS_IS
from megatron_codemix.cli import main as codemix
from megatron_codemix.files import sha256_file, sha256_json

SCHEMAS = Path(__file__).parents[4] / "eval" / "schema"


def _results(folder: Path, tasks: dict[str, list[dict[str, Any]]], model: str = "m", **changes: Any) -> Path:
    entries = {}
    (folder / "items").mkdir(parents=True)
    for name, items in tasks.items():
        path = folder / "items" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        entry = {
            "kind": "bits_per_byte" if name == "code_bpb" else "multiple_choice",
            "definition": {"name": name, "version": 1, "source": "codemix"},
            "kind_version": 1,
            "metrics": {"accuracy": 0.5},
            "num_items": len(items),
            "items": f"items/{name}.jsonl",
            "items_sha256": sha256_file(path),
            "fingerprint": sha256_json(name),
            "versions": {"torch": "2"},
            "data": [{"file": "x.jsonl", "sha256": sha256_json("data"), "rows": len(items), "schema": "rows"}],
            "options": {"data": str(folder), "limit": None},
            "seeds": {},
        }
        entries[name] = entry | changes.get(name, {})
    settings = {"device": "cpu", "dtype": "fp32", "batch_tokens": 512, "context": 64, "start_id": 1, "end_id": 2, "tasks": {}}
    identity = {"path": f"/models/{model}", "sha256": sha256_json(model), "definition_sha256": sha256_json("d"), "codemix": None}
    value = {"format_version": 2, "model": identity, "settings": settings, "tasks": entries}
    jsonschema.validate(value, json.loads((SCHEMAS / "results.schema.json").read_text()))
    (folder / "results.json").write_text(json.dumps(value))
    return folder


def _items(scores: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"id": str(index), "input": f"q{index}", "score": score, **more} for index, score in enumerate(scores)]


def test_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = [0, 1] * 60, [1, 1] * 55 + [0, 1] * 5
    a = _results(tmp_path / "a", {"piqa": _items(bad), "boolq": _items([1, 0, 1, 1]), "code_bpb": _items([2.0, 3.0] * 20, bytes=100)}, "a")
    b = _results(tmp_path / "b", {"piqa": _items(good), "boolq": _items([1, 0, 1, 0]), "code_bpb": _items([1.5, 2.4] * 20, bytes=100)}, "b")
    assert main([str(a), str(b / "results.json"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert WHAT_THIS_IS in said
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    tasks = found["tasks"]
    assert tasks["piqa"]["difference"] == pytest.approx(55 / 120)
    assert (tasks["piqa"]["only_a"], tasks["piqa"]["only_b"], tasks["piqa"]["test"]) == (0, 55, "mcnemar")
    assert tasks["piqa"]["verdict"] == "B is better"
    assert "<td>piqa</td><td>B is better</td><td>120</td>" in (tmp_path / "out" / "compare.html").read_text()
    assert tasks["boolq"]["verdict"] == "no difference shown"
    assert tasks["code_bpb"]["difference"] == pytest.approx(-0.55)
    assert tasks["code_bpb"]["verdict"] == "B is better"  # fewer bits
    assert tasks["piqa"]["p"] <= tasks["piqa"]["q"] <= tasks["piqa"]["p_holm"]
    assert found["note"] == WHAT_THIS_IS
    page = (tmp_path / "out" / "compare.html").read_text()
    assert WHAT_THIS_IS in page
    assert page.count("<circle") == 3
    assert "<script" not in page
    again = tmp_path / "again"
    assert main([str(a), str(b), "--output", str(again)]) == 0
    assert (again / "compare.json").read_bytes() == (tmp_path / "out" / "compare.json").read_bytes()


def test_prefixes_of_a_problem_stay_together(tmp_path: Path) -> None:
    rows = [{"id": f"{problem}/{prefix}", "score": 0, "cluster": str(problem)} for problem in range(4) for prefix in range(30)]
    a = _results(tmp_path / "a", {"humaneval": rows}, "a")
    b = _results(tmp_path / "b", {"humaneval": [{**row, "score": 1} for row in rows]}, "b")
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["humaneval"]
    assert (task["items"], task["clusters"], task["test"]) == (120, 4, "permutation")
    assert task["p"] == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"data": [{"file": "x", "sha256": "0" * 64, "rows": 2, "schema": "rows"}]}, "its data is not the same"),
        ({"options": {"data": "elsewhere", "limit": 2}}, "other options (limit)"),
        ({"definition": {"name": "piqa", "version": 2, "source": "codemix"}}, "not the same task (definition"),
        ({"kind_version": 2}, "not the same task (kind_version"),
    ],
)
def test_other_tasks_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, reason: str) -> None:
    tasks = {"piqa": _items([0, 1]), "boolq": _items([0, 1])}
    a, b = _results(tmp_path / "a", tasks), _results(tmp_path / "b", tasks, piqa=change)
    assert main([str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert f"not compared: piqa: it {reason}" in said or f"not compared: piqa: {reason}" in said or reason in said
    assert "boolq" in said.split("not compared")[0]
    assert "A and B are the same weights" in said


def test_other_items_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = _results(tmp_path / "a", {"piqa": _items([0, 1]), "boolq": _items([0, 1]), "sciq": _items([0, 1]), "copa": _items([1])})
    other = [{**item, "input": "another question"} for item in _items([0, 1])]
    b = _results(tmp_path / "b", {"piqa": other, "boolq": _items([0]), "sciq": _items([0, 1]), "cb": _items([1])})
    assert main([str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert "piqa: its items do not have the same inputs" in said
    assert "boolq: its items are not the same" in said
    assert "copa: /models/m was not measured on it" in said
    assert "cb: /models/m was not measured on it" in said


def test_other_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (_results(tmp_path / name, {"piqa": _items([0, 1])}, name) for name in "ab")
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 0
    assert "under another" not in capsys.readouterr().out
    value = json.loads((b / "results.json").read_text())
    value["settings"] |= {"dtype": "bf16", "context": 32}
    (b / "results.json").write_text(json.dumps(value))
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "measured under another dtype: A fp32, B bf16\nmeasured under another context: A 64, B 32\n" in said
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["other_settings"] == {"dtype": ["fp32", "bf16"], "context": [64, 32]}
    assert "Measured under another dtype: A fp32, B bf16." in (tmp_path / "out" / "compare.html").read_text()


def test_places_of_files_are_no_options(tmp_path: Path) -> None:
    options = [{"data": f"/{name}/x.jsonl", "shots": f"/{name}/shots.jsonl", "limit": None} for name in "ab"]
    a, b = (_results(tmp_path / name, {"piqa": _items([0, 1])}, name, piqa={"options": one}) for name, one in zip("ab", options))
    assert main([str(a), str(b)]) == 0


def test_items_without_a_score_are_counted(tmp_path: Path) -> None:
    a = _results(tmp_path / "a", {"piqa": _items([0, 1, 1])})
    b = _results(tmp_path / "b", {"piqa": [{**item, "score": None if item["id"] == "1" else 1} for item in _items([0, 1, 1])]})
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["piqa"]
    assert (task["items"], task["left_out"]) == (2, 1)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = _results(tmp_path / "a", {"piqa": _items([0, 1])})
    none = _results(tmp_path / "none", {"boolq": _items([0, 1])})
    changed = _results(tmp_path / "changed", {"piqa": _items([0, 1])})
    (changed / "items" / "piqa.jsonl").write_text('{"id": "0", "score": 1}\n')
    gone = _results(tmp_path / "gone", {"piqa": _items([0, 1])})
    (gone / "items" / "piqa.jsonl").unlink()
    outside = _results(tmp_path / "outside", {"piqa": _items([0, 1])})
    value = json.loads((outside / "results.json").read_text())
    value["tasks"]["piqa"]["items"] = "../a/items/piqa.jsonl"
    (outside / "results.json").write_text(json.dumps(value))
    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text('{"format_version": 1, "tasks": {}}')
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "unfinished.json").write_text("{}")
    for other, reason in [
        (tmp_path / "absent", "holds no results.json"),
        (unfinished, "is not finished"),
        (old, "no results file of format 2"),
        (none, "hold no task that can be compared"),
        (changed, "has changed since it was measured"),
        (gone, "are not there"),
        (outside, "are not there"),
    ]:
        assert codemix(["eval", "compare", str(a), str(other)]) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1, said
    assert codemix(["eval", "compare", str(a), str(a), "--resamples", "1"]) == 2
    assert codemix(["eval", "compare", str(a), str(a), "--output", str(a / "results.json")]) == 2


def test_no_item_differs_is_no_proof_of_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"piqa": _items([0, 1, 1, 0]), "code_bpb": _items([2.0, 3.0], bytes=100)}
    a, b = (_results(tmp_path / name, tasks, name) for name in "ab")
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]
    reach = 1 - 0.025 ** (1 / 4)
    assert (found["piqa"]["low"], found["piqa"]["high"]) == pytest.approx((-reach, reach))
    assert found["piqa"]["detectable"] is found["piqa"]["odds_ratio"] is None
    assert found["code_bpb"]["low"] is found["code_bpb"]["high"] is None
    said, page = capsys.readouterr().out, (tmp_path / "out" / "compare.html").read_text()
    assert "[-0.6024, +0.6024]" in said
    assert "none" in said
    assert "<td>none</td>" in page
    assert "nan" not in page
