"""`order: blocks`: every window once per epoch, a block of shards at a time, and a plan that needs no shards to be made again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.mixture import compile_plan, order_key
from megatron_codemix.mixture.audit import recompile
from megatron_codemix.mixture.blocks import BlockOrder

SHARDS = {"code": [7, 0, 12, 5, 9, 1, 0, 30], "text": [11, 13, 2]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_reads_every_window_once_and_a_block_at_a_time(windows: list[int], per_block: int, epoch: int) -> None:
    order = BlockOrder(np.array(windows), per_block, order_key(3, "code", epoch))
    read = order(np.arange(order.n))
    assert sorted(read.tolist()) == list(range(sum(windows)))
    shard = np.repeat(np.arange(len(windows)), windows)[read]
    places = [np.flatnonzero(shard == number) for number in np.unique(shard)]
    begun = np.sort([place[0] for place in places])
    ended = np.sort([place[-1] for place in places])
    open_at = [np.searchsorted(begun, at, "right") - np.searchsorted(ended, at, "left") for at in range(order.n)]
    assert max(open_at) <= per_block, "more shards at a time than a block has"


def test_any_place_is_found_without_those_before_it() -> None:
    order = BlockOrder(np.array(SHARDS["code"]), 3, order_key(0, "code", 1))
    whole = order(np.arange(order.n))
    shuffled = np.random.default_rng(0).permutation(order.n)
    assert order(shuffled).tolist() == whole[shuffled].tolist()
    assert order(shuffled.reshape(8, -1)).shape == (8, 8)
    for outside in (-1, order.n):
        with pytest.raises(ValueError, match="outside"):
            order(np.array([outside]))


def test_the_order_never_changes() -> None:
    """A run that a later version continues reads on where it stopped."""
    order = BlockOrder(np.array([3, 4, 5]), 2, order_key(7, "code", 0))
    assert order(np.arange(12)).tolist() == [10, 8, 7, 4, 5, 6, 3, 11, 9, 1, 2, 0]


def _config(**data: object) -> RunConfig:
    rate = {"shape": "constant", "peak": 0.001}
    stages = [
        {
            "name": "a",
            "tokens": 8 * 4 * 6,
            "mixture": {"code": 0.5, "text": 0.5},
            "batch_size": 4,
            "sequence_length": 8,
            "learning_rate": rate,
        },
        {"name": "b", "tokens": 16 * 2 * 9, "mixture": {"code": 1}, "batch_size": 2, "sequence_length": 16, "learning_rate": rate},
    ]
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    sources = {name: {"path": name, "max_epochs": 9} for name in SHARDS}
    raw = {"name": "r", "output": "o", "tokenizer": "t", "sources": sources, "model": shape, "stages": stages, "data": data}
    return parse_config(raw, RunConfig, "test")


def _plan(config: RunConfig):
    def of(name: str):
        return lambda length: np.array(SHARDS[name]) * 8 // length

    windows = {name: lambda length, name=name: int(of(name)(length).sum()) for name in SHARDS}
    return compile_plan(config, windows, dict.fromkeys(SHARDS, "f" * 64), {name: of(name) for name in SHARDS})


def test_the_plan_is_made_again_from_what_it_remembers() -> None:
    config = _config(order="blocks", block_shards=2)
    plan = _plan(config)
    stored = plan.as_json()
    assert stored["order"] == {"blocks": 2}
    assert stored["sources"]["code"]["shard_windows"]["8"] == SHARDS["code"]
    again = recompile(config, stored, "plan.json")
    assert again.as_json() == stored
    for step in range(plan.num_steps):
        assert np.array_equal(again.samples(step).window, plan.samples(step).window)
        assert np.array_equal(plan.twin().samples(step).window, plan.samples(step).window)


def test_the_order_is_part_of_the_plan_and_the_global_one_says_nothing_new() -> None:
    plain, blocks = _plan(_config()), _plan(_config(order="blocks"))
    assert plain.fingerprint != blocks.fingerprint != _plan(_config(order="blocks", block_shards=3)).fingerprint
    assert plain.fingerprint == _plan(_config(assignment="shard", block_shards=9)).fingerprint
    assert "order" not in plain.as_json()
    assert "shard_windows" not in plain.as_json()["sources"]["code"]
    counts = [[np.bincount(plan.samples(step).source, minlength=2).tolist() for step in range(6)] for plan in (plain, blocks)]
    assert counts[0] == counts[1], "the order of windows must not move shares"


def test_windows_between_are_those_of_the_steps() -> None:
    plan = _plan(_config(order="blocks", block_shards=2))
    for stage in plan.stages:
        samples = plan.samples(stage.first_step, stage.num_steps)
        for source in stage.members.tolist():
            found = np.concatenate([ids for _, ids in plan.windows_between(stage, source, stage.first_step, stage.end_step)])
            assert found.tolist() == samples.window[samples.source == source].tolist()
