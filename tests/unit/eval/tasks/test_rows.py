"""Rows of the standard tasks: both schemas, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json

import pytest

from eval.catalogue import CATALOGUE
from eval.harness.measure import measure, read
from eval.harness.schemas import HUB, REBUILT, RENDERED, SCHEMAS
from eval.harness.sources import load_rows
from eval.run import gather, read_all
from eval.suites import DataFolder, bigbench_tasks, resolve
from eval.tasks.choices import clustered_error, clustered_interval
from eval.tasks.standard_options import StandardTask
from megatron_codemix.errors import UserError

FOUNDRY = {
    "piqa": (
        {"query": "Question: Boil water\n", "choices": ["Heat it.", "Freeze it."], "gold": 0},
        ("Question: Boil water\nAnswer:", " Heat it."),
    ),
    "boolq": (
        {"query": "Passage: Snow.\nQuestion: is it\nQuestion: is snow white?", "choices": ["no", "yes"], "gold": 1},
        ("Snow.\nQuestion: is it\nQuestion: is snow white?\nAnswer:", " no"),
    ),
    "arc_easy": ({"query": "Question: Which?", "choices": ["a", "b", "c"], "gold": 2}, ("Question: Which?\nAnswer:", " a")),
    "copa": (
        {"query": "The man slipped, because", "choices": ["the floor was wet.", "he ran."], "gold": 0},
        ("The man slipped because", "  the floor was wet."),
    ),
    "winogrande": (
        {"context_options": ["The tab met the tabby so the tab", "The tab met the tabby so the tabby"], "continuation": "left.", "gold": 1},
        ("The tab met the tabby so the tab", " left."),
    ),
    "lambada": ({"context": "He knocked on the", "continuation": "door"}, ("He knocked on the", " door")),
}
"""llm-foundry's row → the first request that the stock definition makes of it."""


def write(tmp_path, name, rows, pack=bytes):
    path = tmp_path / name
    path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


@pytest.mark.parametrize("name", FOUNDRY)
def test_ready_rendered_rows_become_the_hubs(name, tmp_path):
    row, request = FOUNDRY[name]
    path = write(tmp_path, "rows.jsonl.gz", [row], gzip.compress)
    assert load_rows(path, name).schema == REBUILT
    task = read(StandardTask(kind="standard", definition=name, data=path))
    task.build_all_requests()
    assert task.instances[0].args == request


def test_rows_that_lost_a_choice_are_scored_as_rendered(tmp_path, fake_engine):
    from_foundry = {"query": "Question: Who?\nChoices:\nA. she\nB. he\nAnswer:", "choices": ["A", "B"], "gold": 1}
    path = write(tmp_path, "siqa.jsonl", [from_foundry])
    assert load_rows(path, "social_iqa").schema == RENDERED
    task = read(StandardTask(kind="standard", definition="social_iqa", data=path))
    task.build_all_requests()
    assert [instance.args[1] for instance in task.instances] == [" A", " B"]
    assert task.config.task == "rendered"


def test_as_rendered_on_request(tmp_path):
    path = write(tmp_path, "piqa.jsonl", [FOUNDRY["piqa"][0]])
    assert load_rows(path, "piqa", wanted="rendered").schema == RENDERED


def test_parquet_and_json_lists_hold_rows_too(tmp_path, hub_rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = [row for row, _ in hub_rows["arc_easy"]]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "arc.parquet")
    (tmp_path / "arc.json").write_text(json.dumps(rows))
    for path in (tmp_path / "arc.parquet", tmp_path / "arc.json"):
        found = load_rows(path, "arc_easy")
        assert (found.values, found.schema, found.ids) == (rows, HUB, ["q7", "q8"])
    (tmp_path / "arc.parquet").write_bytes((tmp_path / "arc.parquet").read_bytes()[:100])
    with pytest.raises(UserError, match=r"arc\.parquet: is no whole parquet file"):
        load_rows(tmp_path / "arc.parquet", "arc_easy")
    (tmp_path / "arc.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"arc\.json: is no whole JSON file"):
        load_rows(tmp_path / "arc.json", "arc_easy", limit=1)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, schema in SCHEMAS.items() for key in schema.columns])
def test_a_missing_column_is_named(name, key, tmp_path, hub_rows):
    good = hub_rows[name][0][0]
    bad = {one: value for one, value in good.items() if one != key.split(".")[0]}
    path = write(tmp_path, "rows.jsonl", [good, bad])
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: no '{key.split('.')[0]}") as caught:
        load_rows(path, name)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("boolq", {"label": 2}, "'label' must be a whole number from 0 to 1, not 2"),
        ("piqa", {"label": -1}, "'label' must be a whole number from 0 to 1, not -1"),
        ("piqa", {"label": True}, "'label' must be a whole number from 0 to 1, not True"),
        ("piqa", {"sol2": " "}, "'sol2' is empty"),
        ("piqa", {"goal": 7}, "'goal' must be a string, not int"),
        ("social_iqa", {"label": "4"}, "'label' must be one of 1, 2, 3, not '4'"),
        ("cb", {"label": 3}, "'label' must be a whole number from 0 to 2, not 3"),
        ("copa", {"question": "why"}, "'question' must be one of cause, effect, not 'why'"),
        ("storycloze", {"answer_right_ending": 0}, "'answer_right_ending' must be one of 1, 2, not 0"),
        ("hellaswag", {"label": "4"}, "'label' must be one of 0, 1, 2, 3, not '4'"),
        ("hellaswag", {"endings": []}, "'endings' must be a list of strings, and not empty"),
        ("winogrande", {"sentence": "No blank."}, "holds no '_'"),
        ("winogrande", {"answer": ""}, "'answer' must be one of 1, 2, not ''"),
        ("arc_easy", {"answerKey": "E"}, "'answerKey' 'E' is none of the labels"),
        ("triviaqa", {"answer": {"aliases": []}}, "'answer.aliases' must be a list of strings, and not empty"),
        ("nq_open", {"answer": [3]}, r"'answer\[0\]' must be a string, not int"),
        ("lambada", {"text": "word"}, "'text' has no last word"),
        ("gsm8k", {"answer": "12"}, "'answer' does not end in '#### NUMBER'"),
        ("quac", {"orig_answers": {"texts": [None]}}, r"'orig_answers.texts\[0\]' must be a string, not NoneType"),
        ("sciq", {"correct_answer": "\ud800"}, "lone surrogate"),
    ],
)
def test_a_wrong_value_is_one_line(name, change, message, tmp_path, hub_rows):
    path = write(tmp_path, "rows.jsonl", [hub_rows[name][0][0], hub_rows[name][0][0] | change])
    with pytest.raises(UserError, match=message) as caught:
        load_rows(path, name)
    assert len(caught.value.problems) == 1 and f"{path}:2: " in caught.value.problems[0] and "\n" not in caught.value.problems[0]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("piqa", {"query": "Q", "choices": ["a", "b"], "gold": 2}, "'gold' must be a whole number from 0 to 1, not 2"),
        ("piqa", {"query": "Q", "choices": ["a", "b"], "gold": "0"}, "'gold' must be a whole number"),
        ("piqa", {"query": "Q", "choices": ["a", ""], "gold": 0}, "none empty"),
        ("copa", {"query": "He fell, so", "choices": ["a", "b"], "gold": 0}, "ends neither in 'because' nor in 'therefore'"),
        ("boolq", {"query": "Passage only", "choices": ["no", "yes"], "gold": 0}, "is no rendered BoolQ row"),
        ("winogrande", {"context_options": ["a"], "continuation": "b", "gold": 0}, "must be two contexts, not 1"),
        ("social_iqa", {"query": "Q", "choices": ["A"], "gold": 0}, "at least two strings"),
    ],
)
def test_a_wrong_rendered_row_is_one_line(name, row, message, tmp_path):
    path = write(tmp_path, "rows.jsonl", [row])
    with pytest.raises(UserError, match=message):
        load_rows(path, name)


def test_quac_questions_without_a_choice_are_left_out(tmp_path, hub_rows):
    only = hub_rows["quac"][0][0] | {"questions": ["When?", "Whom?"], "orig_answers": {"texts": ["in 1867", "in 1867"]}}
    path = write(tmp_path, "quac.jsonl", [only, hub_rows["quac"][0][0]])
    assert len(read(StandardTask(kind="standard", definition="quac", data=path)).eval_docs) == 3


def test_quac_items_are_named_by_dialogue_and_turn_also_where_there_are_as_many_as_dialogues(tmp_path, hub_rows, fake_engine):
    row = hub_rows["quac"][0][0]
    same = row | {"dialogue_id": "d2", "questions": ["When?"], "orig_answers": {"texts": ["in 1867"]}}
    path = write(tmp_path, "quac.jsonl", [row, same, same])
    task = StandardTask(kind="standard", definition="quac", data=path)
    assert [item["id"] for item in measure(fake_engine(), task, "quac").items] == ["d1-0", "d1-1", "d1-2"]


def test_quac_takes_dialogues_for_its_units(tmp_path, hub_rows, fake_engine):
    row = hub_rows["quac"][0][0]
    path = write(tmp_path, "quac.jsonl", [row | {"dialogue_id": f"d{number}"} for number in range(6)])
    found = measure(fake_engine(), StandardTask(kind="standard", definition="quac", data=path), "quac")
    clusters, scores = [item["cluster"] for item in found.items], [item["correct"] for item in found.items]
    assert (len(scores), len(set(clusters))) == (18, 6)
    assert (found.metrics["accuracy_low"], found.metrics["accuracy_high"]) == clustered_interval(clusters, scores)
    assert found.metrics["accuracy_stderr"] == clustered_error(clusters, scores)


def test_every_task_without_data_is_told_at_once(hub_data):
    for name in ("sciq", "cb", "gsm8k_train"):
        (hub_data / f"{name}.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        resolve(["reasoning", "gsm8k"], hub_data, hub=False)
    *missing, found = caught.value.problems
    assert [problem.split(":")[0] for problem in missing] == ["sciq", "cb", "gsm8k"]
    assert found.startswith("of 12 tasks 9 are found")
    assert "looked for sciq/test, sciq-test" in caught.value.problems[0] and "--hub" in caught.value.problems[0]
    assert "few-shot examples are not found" in caught.value.problems[2]


def test_without_a_data_folder_the_hub_must_be_allowed():
    with pytest.raises(UserError, match="no --data-dir is given"):
        resolve(["piqa"], None, hub=False)
    assert resolve(["piqa"], None, hub=True)["piqa"].hub  # type: ignore[attr-defined]


def test_a_name_that_fits_two_places_is_refused(hub_data):
    (hub_data / "other").mkdir()
    (hub_data / "other" / "piqa.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="'piqa' fits several files"):
        resolve(["piqa"], hub_data, hub=False)


def test_unknown_names_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="--tasks piqaa: neither a task, a suite nor a file; did you mean 'piqa'"):
        resolve(["piqaa"], tmp_path, hub=False)
    with pytest.raises(UserError, match="no such folder"):
        resolve(["piqa"], tmp_path / "nowhere", hub=False)
    with pytest.raises(UserError, match="nothing to measure"):
        gather([], [], None, hub=False)
    (tmp_path / "t.yaml").write_text("tasks:\n  piqa: {kind: multiple_choice, data: rows.jsonl}\n")
    with pytest.raises(UserError, match="no such file"):
        gather([], [str(tmp_path / "t.yaml")], None, hub=False)


def test_files_of_the_hubs_names_are_found(tmp_path):
    for place in ("sciq/test-00000-of-00001.parquet", "boolq/validation.jsonl", "hellaswag_validation.jsonl.gz", "deep/er/cb.jsonl"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    data = DataFolder.open(tmp_path)
    for name in ("sciq", "boolq", "hellaswag", "cb"):
        assert data.find(CATALOGUE[name].files) is not None, name
    assert data.find(CATALOGUE["piqa"].files) is None


def test_bigbench_names(tmp_path):
    folder = tmp_path / "task_json"
    folder.mkdir()
    task = {"name": "x", "metrics": ["multiple_choice_grade"], "preferred_score": "multiple_choice_grade"}
    for name, keywords in (("plain", ["logic"]), ("coded", ["computer code"])):
        (folder / f"{name}.json").write_text(
            json.dumps(task | {"keywords": keywords, "examples": [{"input": "a", "target_scores": {"b": 1, "c": 0}}]})
        )
    write(tmp_path, "bigbench_rows.jsonl", [{"query": "Q: ", "choices": ["a", "b"], "gold": 0}])
    write(tmp_path, "bigbench_text.jsonl", [{"context": "Q", "continuation": "b"}])
    assert bigbench_tasks(DataFolder.open(tmp_path)) == ["plain"]
    found = resolve(["bigbench", "bigbench:coded", "bigbench:rows", "bigbench:text"], tmp_path, hub=False)
    assert {name: task.kind for name, task in found.items()} == {
        "bigbench.plain": "bigbench",
        "bigbench.coded": "bigbench",
        "bigbench.rows": "multiple_choice",
        "bigbench.text": "continuation",
    }
    read_all(found)
    with pytest.raises(UserError, match=r"bigbench:none: its data is not found below .*: looked for task_json/none"):
        resolve(["bigbench:none"], tmp_path, hub=False)


def test_any_other_definition_of_the_harness_by_its_name(tmp_path):
    path = write(
        tmp_path,
        "openbookqa.jsonl",
        [{"question_stem": "Ice is", "choices": {"text": ["cold", "hot"], "label": ["A", "B"]}, "answerKey": "A"}],
    )
    with pytest.raises(UserError, match="neither one of `codemix eval list` nor lm_eval:NAME"):
        read(StandardTask(kind="standard", definition="no_such", data=path))


def test_few_shot_examples_need_rows(tmp_path, hub_rows):
    path = write(tmp_path, "gsm8k.jsonl", [row for row, _ in hub_rows["gsm8k"]])
    with pytest.raises(UserError, match="puts 5 solved examples before each question; name their file as 'shots'"):
        read(StandardTask(kind="standard", definition="gsm8k", data=path))
    assert read(StandardTask(kind="standard", definition="gsm8k", data=path, num_fewshot=0)).config.num_fewshot == 0
