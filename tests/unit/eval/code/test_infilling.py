"""Gaps in HumanEval's solutions, and prompts that put the model's symbols around them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.code import infilling
from eval.code.fim import Symbols, fim_ids, fim_symbols
from eval.code.options import InfillingTask
from eval.engine import Prompt
from megatron_codemix.errors import UserError

SYMBOLS = Symbols(prefix=-1, suffix=-2, middle=-3)
IDS = st.lists(st.integers(0, 9), max_size=12)


def task_of(path, spans, **more):
    return InfillingTask(kind="infilling", data=path, spans=spans, **more)


@pytest.mark.parametrize(("spans", "gaps"), [("single_line", 3 + 2), ("multi_line", 6 + 3), ("random_span", 20)])
@pytest.mark.parametrize("order", ["psm", "spm"])
def test_right_and_empty(humaneval_file, measured, spans, gaps, order):
    task = task_of(humaneval_file, spans, order=order)
    gold, engine = measured(task)
    assert gold.metrics["pass@1"] == 1.0 and len(gold.items) == gaps and gold.metrics["distinct_programs"] == 2
    assert gold.metrics["problems"] == 2 and gold.metrics["cut_prompts"] == 0
    for prompt, _ in engine.asked:
        places = [prompt.ids.index(symbol) for symbol in (1, 2, 3)]  # prefix, middle, suffix
        assert places[0] == 0 and (places[2] < places[1]) and (order == "psm" or places[2] == 1)
    empty, _ = measured(task, "empty")  # even of a span without which all tests hold
    assert empty.metrics["pass@1"] == 0.0 and empty.metrics["verdict_empty_completion"] == gaps
    for item in gold.items:
        assert item["cluster"] in ("Mine/0", "Mine/1") and item["id"].startswith(item["cluster"] + "/")


def test_gaps_join_to_what_they_were_cut_from(humaneval_file):
    for spans in ("single_line", "multi_line", "random_span"):
        problems = infilling.read(task_of(humaneval_file, spans))
        assert len({one.head + one.reference + one.tail for one in problems}) == 2
        assert all(one.reference.strip() and one.suffix is not None and one.tail.endswith(one.suffix) for one in problems)
    single = infilling.read(task_of(humaneval_file, "single_line"))
    assert [one.identity for one in single][:3] == ["Mine/0/L0", "Mine/0/L1", "Mine/0/L2"]
    assert single[1].reference == "        return 0" and single[1].suffix == "\n    return numbers[-1]\n"
    assert {one.stop for one in single} == {("\n",)}


def test_random_spans_follow_from_their_seed(humaneval_file):
    def spans(**more):
        return [(one.identity, one.reference) for one in infilling.read(task_of(humaneval_file, "random_span", **more))]

    assert spans() == spans() != spans(spans_seed=1)
    assert spans(spans_per_problem=3) == [one for one in spans() if int(one[0].rpartition("/")[2]) < 3]
    assert len(set(spans())) == 20


def test_rows_with_a_suffix_are_taken_as_they_are(write_jsonl, measured):
    row = {
        "task_id": "RandomSpanInfilling/HumanEval/7/3",
        "prompt": "def f(x):\n    return (x",
        "canonical_solution": " + 1",
        "suffix": " - 0)\n",
        "test": "def check(candidate):\n    assert candidate(2) == 3\n",
        "entry_point": "f",
    }
    path = write_jsonl("published.jsonl", [row])
    gold, _ = measured(task_of(path, "random_span"))
    assert gold.metrics["pass@1"] == 1.0 and gold.items[0]["cluster"] == "HumanEval/7"


@settings(max_examples=200, deadline=None)
@given(IDS, IDS, st.sampled_from(["psm", "spm"]), st.integers(3, 40))
def test_prompts_fit_and_keep_what_is_near_the_gap(prefix, suffix, order, room):
    ids, cut = fim_ids(SYMBOLS, prefix, suffix, order, room)
    assert len(ids) <= max(room, 3) and cut == (len(prefix) + len(suffix) + 3 > room)
    if order == "psm":
        before, behind = ids[1 : ids.index(-2)], ids[ids.index(-2) + 1 : -1]
        assert ids[0] == -1 and ids[-1] == -3
    else:
        behind, before = ids[2 : ids.index(-3)], ids[ids.index(-3) + 1 :]
        assert ids[:2] == (-1, -2)
    assert list(before) == prefix[len(prefix) - len(before) :] and list(behind) == suffix[: len(behind)]
    assert len(before) + len(behind) == min(len(prefix) + len(suffix), room - 3)


def test_models_without_symbols_are_refused(humaneval_file, knowing_engine):
    engine = knowing_engine(lambda _: [""])
    engine.tokenizer.get_vocab = lambda: {"<fim_prefix>": 5, "<fim_suffix>": 6}
    with pytest.raises(UserError, match=r"tasks\.gaps: the model's tokenizer has no symbols for infilling"):
        infilling.check(engine, task_of(humaneval_file, "single_line"), "gaps")
    engine.tokenizer.get_vocab = lambda: {"<|fim_prefix|>": 5, "<|fim_suffix|>": 6, "<|fim_middle|>": 7}
    assert fim_symbols(engine, "gaps") == Symbols(5, 6, 7)


def test_too_long_prompts_are_cut_and_counted(humaneval_file, knowing_engine):
    task = task_of(humaneval_file, "single_line", max_new_tokens=20)
    engine = knowing_engine(lambda _: [""], context=100)
    problems = infilling.read(task)
    prompts, cut = infilling.prompts_of(engine, problems, task, "gaps")
    assert all(isinstance(one, Prompt) and len(one.ids) <= 79 for one in prompts) and all(cut[:3])


def test_the_published_sets_have_as_many_gaps(real_data):
    path = real_data / "humaneval" / "HumanEval.jsonl.gz"
    assert len(infilling.read(task_of(path, "single_line"))) == 1033
    assert len(infilling.read(task_of(path, "multi_line"))) == 5815
    assert len(infilling.read(task_of(path, "random_span"))) == 1640


@pytest.mark.slow
@pytest.mark.parametrize("spans", ["single_line", "multi_line", "random_span"])
def test_published_references_score_1(real_data, measured, spans):
    outcome, _ = measured(task_of(real_data / "humaneval" / "HumanEval.jsonl.gz", spans, seconds=10.0))
    assert outcome.metrics["pass@1"] == 1.0 and outcome.metrics["distinct_programs"] == 164
