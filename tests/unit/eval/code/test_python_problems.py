"""HumanEval, MBPP and incremental pass@k on hand-written problems: right answers 1, empty ones 0, and what lies between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.catalogue import CATALOGUE
from eval.code import humaneval, mbpp
from eval.code.incremental import beginnings
from eval.code.measuring import try_sandbox
from eval.code.options import DOCSTRING_STOP, HUMANEVAL_STOP, HumanEvalTask, MbppTask
from eval.rows import read_rows
from eval.run import gather
from megatron_codemix.errors import UserError

LINES = st.lists(st.sampled_from(["    a = 1", "", "    ", "    return a", "    a = 1"]), max_size=8).map("\n".join)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_beginnings_grow_line_by_line_and_never_hold_all(body):
    found = beginnings(body)
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(found) == max(1, len(lines))
    for number, revealed in enumerate(found):
        assert body.startswith(revealed)
        assert [line for line in revealed.splitlines() if line.strip()] == lines[:number]
        assert revealed == "" or revealed.endswith("\n")
        assert len(body[len(revealed) :].strip()) > 0 or not lines


@pytest.mark.parametrize("incremental", [False, True])
def test_humaneval_right_and_empty(humaneval_file, measured, incremental):
    task = HumanEvalTask(kind="humaneval", data=humaneval_file, incremental=incremental)
    gold, engine = measured(task)
    names = ("macro_pass@1", "micro_pass@1") if incremental else ("pass@1",)
    assert [gold.metrics[name] for name in names] == [1.0] * len(names)
    assert gold.metrics["form_calls"] == gold.metrics["verdict_passed"] == len(gold.items) == (5 if incremental else 2)
    assert gold.metrics["tests_passed_share"] == 1.0
    assert gold.metrics["distinct_programs"] == 2  # however much of it was told
    empty, _ = measured(task, "empty")
    assert [empty.metrics[name] for name in names] == [0.0] * len(names)
    assert {decoding.stop for _, decoding in engine.asked} == {tuple(HUMANEVAL_STOP)}
    (first, *_) = gold.items
    assert set(first) == {"id", "cluster", "input", "output", "score", "n", "c", "cut", "samples"}
    assert set(first["samples"][0]) == {"output", "finish", "tokens", "verdict", "detail", "form", "passed", "total", "share"}


def test_incremental_prompts(humaneval_file):
    problems = humaneval.read(HumanEvalTask(kind="humaneval", data=humaneval_file, incremental=True))
    assert [one.identity for one in problems] == ["Mine/0+0", "Mine/0+1", "Mine/0+2", "Mine/1+0", "Mine/1+1"]
    assert {one.cluster for one in problems} == {"Mine/0", "Mine/1"}
    assert problems[2].prompt.endswith('or 0."""\n    if not numbers:\n        return 0\n')
    assert problems[2].reference == "\n    return numbers[-1]\n"
    assert len({one.head + one.reference for one in problems[:3]}) == 1


def test_samples_are_counted_and_kept(humaneval_file, measured):
    task = HumanEvalTask(kind="humaneval", data=humaneval_file, samples=4, temperature=0.8, k=[1, 2, 4])

    def write(problem):
        if problem.identity == "Mine/0":
            return ["    return numbers[-1]\n", problem.reference, "    return (\n", "    raise KeyError\n"]
        return ["    return x\n", "    return 4 * x\n\ndef other():\n    syntax error"] * 2

    outcome, engine = measured(task, write)
    assert engine.asked[0][1].samples == 4 and engine.asked[0][1].temperature == 0.8
    first, second = outcome.items
    assert [one["verdict"] for one in first["samples"]] == ["failed a test", "passed", "syntax error", "failed a test"]
    assert [one["share"] for one in first["samples"]] == [0.666667, 1.0, 0.0, 0.0]
    assert (first["n"], first["c"], first["score"]) == (4, 1, 0.25)
    assert (second["c"], second["samples"][1]["finish"]) == (2, "stop")
    assert outcome.metrics["pass@1"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert outcome.metrics["pass@2"] == pytest.approx((1 / 2 + 1 - 1 / 6) / 2)
    assert outcome.metrics["pass@4"] == 1.0
    assert outcome.metrics["verdict_failed_a_test"] == 4 and outcome.metrics["verdict_syntax_error"] == 1
    assert outcome.metrics["distinct_programs"] == 6


def test_a_stop_string_of_the_reference_is_left_out_for_its_problem(mbpp_file):
    problems = {one.identity: one for one in mbpp.read(MbppTask(kind="mbpp", data=mbpp_file))}
    assert problems["11"].stop == tuple(DOCSTRING_STOP)
    assert problems["13"].stop == tuple(text for text in DOCSTRING_STOP if text != "\nclass")


@pytest.mark.parametrize(("style", "incremental"), [("docstring", False), ("original", False), ("docstring", True)])
def test_mbpp_right_and_empty(mbpp_file, measured, style, incremental):
    task = MbppTask(kind="mbpp", data=mbpp_file, style=style, incremental=incremental)
    gold, _ = measured(task)
    name = "macro_pass@1" if incremental else "pass@1"
    assert gold.metrics[name] == 1.0 and len({item["cluster"] for item in gold.items}) == 3
    forms = {item["cluster"]: item["samples"][0]["form"] for item in gold.items}
    assert forms == {"11": "calls", "12": "inside", "13": "calls"}
    empty, _ = measured(task, "empty")
    assert empty.metrics[name] == 0.0


@pytest.mark.parametrize("nothing", ["", "\n    \n", " \t"])
def test_who_writes_nothing_has_not_solved_it_even_where_no_test_needs_more(write_jsonl, measured, monkeypatch, nothing):
    row = {
        "task_id": 11,
        "text": "Write a function.",
        "test_setup_code": "",
        "test_list": ["assert add(1) == 2"],
        "challenge_test_list": [],
    }
    path = write_jsonl("idle.jsonl", [row | {"code": "def add(x):\n  return x + 1\n  print(add(3))\n"}])
    task = MbppTask(kind="mbpp", data=path, incremental=True)
    (_, last) = mbpp.read(task)
    assert last.prompt.endswith("  return x + 1\n") and measured(task, lambda _: " # done\n")[0].items[1]["score"] == 1.0

    def none_may_run(self, programs):
        assert not list(programs), "a program was run"
        return iter(())

    monkeypatch.setattr("eval.sandbox.Sandbox.run_many", none_may_run)
    outcome, _ = measured(task.model_copy(update={"samples": 2, "temperature": 1.0}), lambda _: [nothing, nothing])
    assert outcome.metrics["macro_pass@1"] == outcome.metrics["micro_pass@1"] == outcome.metrics["distinct_programs"] == 0
    assert outcome.metrics["verdict_empty_completion"] == 4 and outcome.metrics["form_calls"] == 4
    (sample, _) = outcome.items[1]["samples"]
    assert sample["verdict"] == "empty completion" and "not run" in sample["detail"]
    assert (sample["passed"], sample["total"], sample["share"]) == (0, 1, 0.0)


def test_mbpp_prompts(mbpp_file):
    docstring = mbpp.read(MbppTask(kind="mbpp", data=mbpp_file))[0]
    assert docstring.prompt == '"""\nWrite a function to add 11.\nassert add(0) == 11\n"""\n'
    original = mbpp.read(MbppTask(kind="mbpp", data=mbpp_file, style="original"))[0]
    assert original.prompt.count("[BEGIN]\n") == 4 and original.prompt.count("[DONE]\n\n") == 3 and original.prompt.endswith("[BEGIN]\n")
    assert original.stop == ("[DONE]",) and original.head == ""
    told = mbpp.read(MbppTask(kind="mbpp", data=mbpp_file, incremental=True, limit=1))
    assert [one.prompt[len(docstring.prompt) :] for one in told] == [
        "import math\ndef add(x):\n",
        "import math\ndef add(x):\n  y = math.floor(x)\n",
    ]
    assert [one.identity for one in told] == ["11+0", "11+1"]


def test_the_original_prompt_is_that_of_lm_evaluation_harness(mbpp_file):
    lm_eval, jinja2 = pytest.importorskip("lm_eval"), pytest.importorskip("jinja2")
    source = Path(lm_eval.__file__).parent / "tasks" / "mbpp" / "mbpp.yaml"
    line = next(line for line in source.read_text().splitlines() if line.startswith("doc_to_text:"))
    template = line.partition(": ")[2].strip('"').replace("\\n", "\n")
    rows = read_rows(mbpp_file)

    def question(row):
        return jinja2.Template(template, keep_trailing_newline=True).render(**row.value)

    shots = "".join(question(row) + row.value["code"] + "\n[DONE]" + "\n\n" for row in rows[:3])
    assert mbpp.read(MbppTask(kind="mbpp", data=mbpp_file, style="original"))[0].prompt == shots + question(rows[3])


def test_programs_are_run_once_and_verdicts_are_kept(humaneval_file, measured, tmp_path, monkeypatch):
    task = HumanEvalTask(kind="humaneval", data=humaneval_file, samples=8, temperature=1.0)
    first, _ = measured(task, cache=tmp_path / "cache")

    def none_may_run(self, programs):
        assert not list(programs), "a program was run again"
        return iter(())

    monkeypatch.setattr("eval.sandbox.Sandbox.run_many", none_may_run)
    again, _ = measured(task, cache=tmp_path / "cache")
    assert first == again and first.metrics["distinct_programs"] == 2
    with pytest.raises(AssertionError, match="run again"):
        measured(task.model_copy(update={"seconds": 2.0}), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_point": "a b"}, "is no name of a function"),
        ({"test": "def check(:"}, "are no Python"),
        ({"test": None}, "'test' must be a string"),
        ({"canonical_solution": "return ("}, "are no Python"),
    ],
)
def test_bad_rows_of_humaneval(write_jsonl, change, message):
    row = {"task_id": "x", "prompt": "def f(x):\n    '''y'''\n", "canonical_solution": "    return x\n", "entry_point": "f"}
    path = write_jsonl("bad.jsonl", [row | {"test": "def check(c):\n    assert c(1) == 1\n"} | change])
    with pytest.raises(UserError, match=rf"bad\.jsonl:1: .*{message}"):
        humaneval.read(HumanEvalTask(kind="humaneval", data=path))


def test_what_mbpp_refuses(mbpp_file, write_jsonl):
    with pytest.raises(UserError, match="holds no problem from 511 to 600, the split 'validation'"):
        mbpp.read(MbppTask(kind="mbpp", data=mbpp_file, split="validation"))
    lacking = write_jsonl("lacking.jsonl", [row.value for row in read_rows(mbpp_file)[3:]])
    with pytest.raises(UserError, match="holds no problem 2, one of the solved problems"):
        mbpp.read(MbppTask(kind="mbpp", data=lacking, style="original"))
    assert len(mbpp.read(MbppTask(kind="mbpp", data=lacking, style="original", shots=mbpp_file))) == 3
    with pytest.raises(UserError, match="defined for style 'docstring' only"):
        mbpp.read(MbppTask(kind="mbpp", data=mbpp_file, style="original", incremental=True))
    named = write_jsonl("named.jsonl", [read_rows(mbpp_file)[0].value | {"task_id": "eleven"}])
    with pytest.raises(UserError, match="is no number"):
        mbpp.read(MbppTask(kind="mbpp", data=named))


def test_without_a_sandbox_nothing_is_generated(humaneval_file, knowing_engine, monkeypatch):
    def none(*_, **__):
        raise UserError("programs of unknown origin are only run in a sandbox")

    monkeypatch.setattr("eval.code.measuring.open_sandbox", none)
    try_sandbox.cache_clear()
    task = HumanEvalTask(kind="humaneval", data=humaneval_file)
    with pytest.raises(UserError, match="only run in a sandbox"):
        humaneval.check(knowing_engine(lambda _: [""]), task, "humaneval")
    try_sandbox.cache_clear()


def test_unsafe_runs_and_says_so(humaneval_file, measured):
    outcome, _ = measured(HumanEvalTask(kind="humaneval", data=humaneval_file, unsafe_no_sandbox=True))
    assert outcome.metrics["pass@1"] == 1.0 and outcome.metrics["run_without_sandbox"] == 2
    assert all(item["samples"][0]["confined"] is False for item in outcome.items)


PROMPTS = {
    "humaneval": 164,
    "humaneval_incremental": 1033,
    "mbpp": 500,
    "mbpp_original": 500,
    "mbpp_incremental": 2784,
    "mbpp_sanitized": 257,
    "mbpp_sanitized_original": 257,
}
"""Every name of the catalogue that asks for Python solutions, and its prompts over the published files."""


def test_no_name_of_the_catalogue_is_forgotten():
    assert set(PROMPTS) == {name for name, entry in CATALOGUE.items() if entry.kind in ("humaneval", "mbpp")}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROMPTS)
def test_over_the_published_problems_references_score_1_and_empty_answers_0(name, real_data, measured, tmp_path):
    """The first problems of each set; with CODEMIX_SOAK=1 all of them."""
    whole = os.environ.get("CODEMIX_SOAK") == "1"
    (task,) = gather([], [name], real_data, hub=False).values()
    task = task.model_copy(update={"seconds": 10.0, "limit": None if whole else 40})
    scores = [f"{kind}pass@1" for kind in (("macro_", "micro_") if task.incremental else ("",))]
    gold, _ = measured(task, cache=tmp_path)
    assert [gold.metrics[score] for score in scores] == [1.0] * len(scores)
    assert len(gold.items) == PROMPTS[name] or (not whole and len({item["cluster"] for item in gold.items}) == 40)
    # equal programs, whatever part of them was told, run once
    assert gold.metrics["distinct_programs"] <= len({item["cluster"] for item in gold.items})
    empty, _ = measured(task, "empty", cache=tmp_path)
    assert [empty.metrics[score] for score in scores] == [0.0] * len(scores)
    assert not any(item["score"] for item in empty.items) and len(empty.items) == len(gold.items)
    assert empty.metrics["verdict_empty_completion"] == len(empty.items)
