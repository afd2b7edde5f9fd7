"""Intervals and floors, minimal pairs, continuations, bits per byte by language."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import continuation, minimal_pairs
from eval.tasks.choices import choice_item, choice_metrics, clustered_interval, share_metrics, wilson_interval
from eval.tasks.standard_options import ContinuationTask, MinimalPairsTask
from megatron_codemix.errors import UserError


def test_wilson_intervals_against_published_ones():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29 (method 3)
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 500), share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_an_interval_holds_its_share(total, share):
    right = round(share * total)
    low, high = wilson_interval(right, total)
    assert 0.0 <= low <= right / total <= high <= 1.0


@pytest.mark.parametrize(("right", "floor"), [(50, True), (56, True), (80, False), (20, True)])
def test_the_floor_is_where_the_interval_does_not_lie_above_chance(right, floor):
    items = [choice_item(["a", "b"], 0, [0.0, -1.0] if index < right else [-1.0, 0.0]) for index in range(100)]
    metrics = choice_metrics(items)
    assert (metrics["accuracy"], metrics["chance"], metrics["floor"]) == (right / 100, 0.5, floor)
    assert metrics["accuracy_stderr"] == pytest.approx(math.sqrt(right / 100 * (1 - right / 100) / 99))


def test_questions_on_one_text_count_as_the_texts_they_are_on():
    """Dialogues of ten turns that are all right or all wrong hold no more than one question each; the interval must say so."""
    random, covered, taken_for_independent = np.random.default_rng(7), 0, 0
    for _ in range(100):
        scores = np.repeat(random.random(40) < 0.5, 10).astype(float).tolist()
        found = share_metrics("accuracy", scores, [f"d{number // 10}" for number in range(400)])
        covered += found["accuracy_low"] <= 0.5 <= found["accuracy_high"]
        independent = share_metrics("accuracy", scores)
        taken_for_independent += independent["accuracy_low"] <= 0.5 <= independent["accuracy_high"]
        assert found["accuracy"] == independent["accuracy"]
    assert covered >= 88  # 95 of 100 are expected, less three standard errors
    assert taken_for_independent < 70


def test_clusters_that_agree_are_no_certainty():
    for right in (0.0, 1.0):
        low, high = clustered_interval([f"d{number // 5}" for number in range(20)], [right] * 20)
        assert (low, high) == wilson_interval(right * 4, 4)
    assert share_metrics("x", [0.0, 1.0], ["a", "b"]) == share_metrics("x", [0.0, 1.0])  # clusters of one each are none
    assert share_metrics("x", [0.0, 1.0, 1.0, 0.0], list("aabb"))["x_low"] < 0.2


def test_scores_of_one_question():
    item = choice_item(["ab", "abcd", "ż"], 1, [-2.0, -3.0, -8.0])
    assert (item["chosen"], item["chosen_norm"], item["correct"], item["correct_norm"]) == (0, 1, 0, 1)
    assert (item["margin"], item["margin_norm"]) == (pytest.approx(-1.0), pytest.approx(0.25))
    assert item["gold_log_probability_per_byte"] == pytest.approx(-0.75)
    assert item["bytes"] == [2, 4, 2]


def test_several_right_choices():
    item = choice_item(["a", "b", "c", "d"], 0, [-3.0, -1.0, -2.0, -5.0], also_right=[2])
    assert (item["right"], item["gold"], item["correct"], item["margin"]) == ([0, 2], 2, 0, -1.0)
    assert choice_metrics([item])["chance"] == 0.5
    assert choice_item(["a", "b"], 0, [-1.0, -2.0], also_right=[1])["margin"] == 0.0


def test_minimal_pairs_of_sentences(write_rows, fake_engine):
    rows = [
        {"sentence_good": "The cat is here.", "sentence_bad": "The cat are here.", "UID": "agreement", "pairID": 0},
        {"sentence_good": "Who left?", "sentence_bad": "Left who?", "UID": "order", "pairID": 1},
    ]
    task = MinimalPairsTask(kind="minimal_pairs", data=write_rows("blimp.jsonl", rows))
    good = minimal_pairs.measure(fake_engine(right=lambda text: text in ("The cat is here.", "Who left?")), task, "blimp")
    assert (good.metrics["accuracy"], good.metrics["chance"], good.metrics["pairs"]) == (1.0, 0.5, 2)
    half = minimal_pairs.measure(fake_engine(right=lambda text: "The cat is" in text or text == "Left who?"), task, "blimp")
    assert half.metrics["accuracy"] == 0.5
    assert (half.metrics["accuracy.UID=agreement"], half.metrics["accuracy.UID=order"]) == (1.0, 0.0)
    assert [item["output"] for item in half.items] == ["The cat is here.", "Left who?"]


def test_minimal_pairs_of_code_behind_a_prefix(write_rows, fake_engine):
    rows = [{"before": "def f(x):\n", "good": "    return x\n", "bad": "    return y\n"}]
    options = {"good_field": "good", "bad_field": "bad", "prefix_field": "before"}
    task = MinimalPairsTask(kind="minimal_pairs", data=write_rows("code.jsonl", rows), **options)
    outcome = minimal_pairs.measure(fake_engine(right=lambda text: text == "def f(x):\n    return x\n"), task, "code")
    (item,) = outcome.items
    assert (outcome.metrics["accuracy"], item["input"]) == (1.0, "def f(x):\n")
    assert item["tokens"] == [len("\n    return x\n")] * 2  # the space at the prefix's end is scored with what follows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence_good": "a"}, "no 'sentence_bad' in this row"),
        ({"sentence_good": "a", "sentence_bad": "a"}, "the two texts must differ"),
        ({"sentence_good": "", "sentence_bad": "a"}, "neither may be empty"),
        ({"sentence_good": 1, "sentence_bad": "a"}, "'sentence_good' must be a string"),
    ],
)
def test_a_bad_pair_is_one_line(row, message, write_rows):
    with pytest.raises(UserError, match=message):
        minimal_pairs.read(MinimalPairsTask(kind="minimal_pairs", data=write_rows("bad.jsonl", [row])))


def test_continuations(write_rows, fake_engine):
    rows = [
        {"context": "2+2=", "continuation": " 4", "level": "easy"},
        {"context": "The sky is", "continuation": "blue", "level": "easy"},
        {"context": "A: ", "continuation": "yes", "level": "hard"},
    ]
    task = ContinuationTask(kind="continuation", data=write_rows("rows.jsonl", rows), group_fields=["level"])
    outcome = continuation.measure(fake_engine(right=lambda text: text in ("2+2= 4", "The sky is blue")), task, "rows")
    assert [item["correct"] for item in outcome.items] == [1, 1, 0]
    assert (outcome.metrics["accuracy.level=easy"], outcome.metrics["accuracy.level=hard"]) == (1.0, 0.0)
    assert [item["output"] for item in outcome.items] == [" 4", " blue", "yes"]
    assert outcome.items[1]["gold_log_probability_per_byte"] == pytest.approx(-0.25 * 5 / 4)
    with pytest.raises(UserError, match="is empty, so it has no likelihood"):
        continuation.read(ContinuationTask(kind="continuation", data=write_rows("bad.jsonl", [{"context": "a", "continuation": " "}])))
    assert json.dumps(outcome.items)
