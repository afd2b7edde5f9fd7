"""Where none of a source is held out, the refusal counts its groups and names the share that holds one out."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import is_held_out, split_key
from data_prep.split_keys import MOST_KEYS, LeastKeys
from megatron_codemix.cli import main

_KEYS = st.lists(st.integers(0, 2**64 - 1), max_size=40)


@given(_KEYS)
@settings(max_examples=60, deadline=None)
def test_the_share_holds_out_the_first_group_alone(keys: list[int]) -> None:
    groups = LeastKeys(keys)
    assert groups.sorted() == sorted(set(keys))
    share = groups.least_share()
    if share is not None:
        assert sum(key < float(share) * 2**64 for key in set(keys)) == 1
    else:
        assert len(groups) < 2 or groups.sorted()[1] - groups.sorted()[0] < 2**20


def test_only_the_least_keys_are_kept_in_whatever_order_they_come() -> None:
    keys = [split_key(f"g{number}", 0) for number in range(3 * MOST_KEYS)]
    groups = LeastKeys(keys)
    random.Random(0).shuffle(keys)
    assert groups.sorted() == sorted(keys)[:MOST_KEYS] == LeastKeys(keys + keys).sorted()
    assert groups.counted == f"at least {MOST_KEYS} groups"
    halves = [LeastKeys(keys[::2]).sorted(), LeastKeys(keys[1::2]).sorted()]
    assert LeastKeys(key for half in halves for key in half).sorted() == groups.sorted()


@pytest.mark.parametrize("deduplicate", [None, {"exact": True}], ids=["straight", "clean store"])
def test_the_refusal_of_all_sources_can_be_followed(
    ready: Path, prep_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], deduplicate: dict | None
) -> None:
    rows = [json.loads(line) for line in (ready / "a.jsonl").read_text().splitlines()]
    few = [name for name in (f"r{number}" for number in range(100)) if not is_held_out(name, 1, 0.2)][:3]
    for number, row in enumerate(rows):
        row["repo"] = few[number % 3]
    (ready / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (ready / "b.jsonl").write_text("".join(json.dumps({**row, "repo": few[0], "text": row["text"] + "#"}) + "\n" for row in rows))
    path = prep_file(ready, **({"deduplicate": deduplicate} if deduplicate else {}))
    config = yaml.safe_load(path.read_text())
    config["sources"]["other"] = {**config["sources"]["code"], "paths": [str(ready / "b.jsonl")]}
    path.write_text(json.dumps(config))
    assert main(["prep", "shards", str(path)]) == 2
    lines = [line for line in capsys.readouterr().err.split("\n") if line.startswith("codemix prep:")]
    assert len(lines) == 2
    assert "sources.code: none of its" in lines[0] and "in 3 groups is held out" in lines[0]
    assert "sources.other: none of its" in lines[1] and "in 1 group is held out" in lines[1] and "leave out its group_field" in lines[1]
    found = re.search(r"set split.validation=([0-9.]+), which holds one group out", lines[0])
    assert found is not None
    assert [is_held_out(name, 1, float(found[1])) for name in few].count(True) == 1
    del config["sources"]["other"]
    path.write_text(json.dumps(config))
    assert main(["prep", "shards", str(path), f"split.validation={found[1]}"]) == 0
