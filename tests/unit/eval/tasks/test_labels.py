"""What items are called and grouped by comes from rows and options: it must be text, and never take the place of what was measured."""

from __future__ import annotations

import json

import pytest
import yaml

from eval.tasks import bits_per_byte, continuation, minimal_pairs, multiple_choice
from eval.tasks.options import ITEM_KEYS, BitsPerByteTask, MultipleChoiceTask, read_tasks
from eval.tasks.standard_options import ContinuationTask, MinimalPairsTask
from megatron_codemix.errors import UserError

ROWS = {
    "minimal_pairs": {"sentence_good": "It is.", "sentence_bad": "It are."},
    "continuation": {"context": "2+2=", "continuation": " 4"},
    "bits_per_byte": {"text": "some text"},
    "multiple_choice": {"query": "Q", "choices": ["a", "b"], "gold": 0},
}
KINDS = {
    "minimal_pairs": (minimal_pairs, MinimalPairsTask),
    "continuation": (continuation, ContinuationTask),
    "bits_per_byte": (bits_per_byte, BitsPerByteTask),
    "multiple_choice": (multiple_choice, MultipleChoiceTask),
}


@pytest.mark.parametrize("key", sorted(ITEM_KEYS))
def test_a_group_must_not_take_the_place_of_what_is_measured(tmp_path, key):
    path = tmp_path / "tasks.yaml"
    for kind in ("minimal_pairs", "continuation", "bits_per_byte"):
        path.write_text(yaml.safe_dump({"tasks": {"mine": {"kind": kind, "data": "rows.jsonl", "group_fields": ["topic", key]}}}))
        with pytest.raises(UserError, match=rf"tasks\.mine: group_fields: '{key}' is a key that every item has already") as caught:
            read_tasks(path)
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize("kind", ["minimal_pairs", "continuation", "bits_per_byte"])
def test_no_key_of_an_item_is_forgotten(kind, write_rows, fake_engine):
    module, options = KINDS[kind]
    engine = fake_engine()
    engine.rolling_tokens = lambda documents, name: [float(len(one)) for one in documents]
    task = options(kind=kind, data=write_rows("rows.jsonl", [ROWS[kind] | {"topic": "a"}]), group_fields=["topic"])
    (item,) = module.measure(engine, task, kind).items
    assert item["topic"] == "a"
    assert set(item) - {"topic"} <= ITEM_KEYS


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind in KINDS for key in ("id", "topic") if (kind, key) != ("multiple_choice", "topic")]
)
def test_a_label_that_is_no_text_is_told_before_anything_is_measured(kind, key, tmp_path):
    module, options = KINDS[kind]
    grouped = {} if kind == "multiple_choice" else {"group_fields": ["topic"]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[kind]) + "\n" + json.dumps(ROWS[kind] | {key: "a\ud800"}) + "\n")  # escaped
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: '{key}' holds a lone surrogate"):
        module.read(options(kind=kind, data=path, **grouped))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"kind": "arithmetic", "template": "{left} {sign} {right} \ud800="}, "template"),
        ({"kind": "arithmetic", "separator": "\udfff"}, "separator"),
        ({"kind": "arithmetic", "signs": {"add": "\ud83d"}}, "signs.add"),
        ({"kind": "generation", "data": "rows.jsonl", "stop": ["a", "\ud800"]}, r"stop\[1\]"),
        ({"kind": "continuation", "data": "rows.jsonl", "delimiter": "\ud800"}, "delimiter"),
    ],
)
def test_options_that_are_no_text_are_one_line(tmp_path, options, where):
    path = tmp_path / "tasks.yaml"
    path.write_text(json.dumps({"tasks": {"mine": options}}))  # JSON escapes lone surrogates, as YAML can
    with pytest.raises(UserError, match=rf"tasks\.mine\.{where}: holds a lone surrogate") as caught:
        read_tasks(path)
    assert str(caught.value).isprintable()
