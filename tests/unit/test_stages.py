"""Stages against tables worked out by hand: staircases of the batch, schedules over several stages, cuts, places; plans unchanged."""

import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import RunConfig, Stage, data_ranks, dump_yaml, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Staircase, compile_plan, disagreement, plan_table
from megatron_codemix.train.schedule import Schedule

LENGTH = 16
TOKENS = {"a": 5000, "b": 7000}


def stage(name="one", tokens=640, batch_size: Any = 4, mixture: Any = None, rate: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "tokens": tokens,
        "mixture": mixture or {"a": 1},
        "batch_size": batch_size,
        "sequence_length": LENGTH,
        "learning_rate": rate or {"shape": "constant", "peak": 0.5},
        **more,
    }


def config(*stages, **extra) -> RunConfig:
    raw = {
        "name": "r",
        "output": "o",
        "tokenizer": "t",
        "sources": {name: {"path": name, "max_epochs": 1e6} for name in TOKENS},
        "model": {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8},
        "stages": list(stages),
        **extra,
    }
    return parse_config(raw, RunConfig, "test")


def compiled(*stages, **extra):
    windows = {name: lambda length, number=number: (number - 1) // length for name, number in TOKENS.items()}
    return compile_plan(config(*stages, **extra), windows, {name: name for name in TOKENS})


def rates(*stages, **extra) -> list[float]:
    found, plan = Schedule(config(*stages, **extra)), compiled(*stages, **extra)
    return [found.at(step) for step in range(plan.num_steps)]


def ramp(start, end, increment, tokens):
    return {"start": start, "end": end, "increment": increment, "tokens": tokens}


# (batch_size, tokens of the stage in windows) → windows of every step, by hand
STAIRS = [
    (ramp(2, 6, 2, 12 * LENGTH), 24, [2, 2, 2, 4, 4, 6, 6]),  # 6 windows at 2; 6 at 4 (two steps: 8); 10 left: 1.67 → 2 steps of 6
    (ramp(1, 3, 1, 4 * LENGTH), 10, [1, 1, 2, 3, 3]),
    (ramp(1, 9, 2, 4 * LENGTH), 4, [1, 3]),  # one window a level; 3 passes over the levels 5 and 7; nothing is left
    (ramp(4, 8, 4, 1 * LENGTH), 8, [4, 8]),  # 4 windows left: half a batch of 8 is rounded up
    (ramp(4, 8, 4, 1 * LENGTH), 7, [4]),
    (4, 10, [4, 4, 4]),
    (4, 1, [4]),
]


@pytest.mark.parametrize("batch_size, windows, expected", STAIRS)
def test_staircases_by_hand(batch_size, windows, expected):
    plan = compiled(stage(tokens=windows * LENGTH, batch_size=batch_size))
    only = plan.stages[0]
    assert [only.batch_size_at(step) for step in range(plan.num_steps)] == expected
    assert [len(plan.samples(step).window) for step in range(plan.num_steps)] == expected
    assert [only.samples_before(step) for step in range(plan.num_steps + 1)] == [sum(expected[:step]) for step in range(len(expected) + 1)]
    assert only.tokens == sum(expected) * LENGTH == only.tokens_before(plan.num_steps)
    places = [(step, place) for step, size in enumerate(expected) for place in range(size)]
    assert [plan.locate(sample)[1:] for sample in range(plan.num_samples)] == places
    assert [plan.first_sample(step) for step in range(plan.num_steps)] == [sum(expected[:step]) for step in range(len(expected))]


@settings(max_examples=100, deadline=None)
@given(start=st.integers(1, 9), increment=st.integers(1, 9), levels=st.integers(1, 9), first=st.integers(1, 400), more=st.integers(0, 400))
def test_a_ramp_is_megatrons_rule_in_tokens(start, increment, levels, first, more):
    """Every step's batch from the tokens before it, as Megatron-LM's RampupBatchsizeNumMicroBatchesCalculator has it."""
    declared = ramp(start, start + levels * increment, increment, first)
    stairs = Staircase.of(Stage.model_validate(stage(tokens=first + more, batch_size=declared)))
    for step in range(stairs.num_steps):
        done = stairs.tokens_before(step)
        expected = declared["end"] if done >= first else start + levels * done // first * increment
        assert stairs.tread_at(step).size == expected
    half = stairs.tread_at(stairs.num_steps).size * LENGTH / 2
    total = stairs.tokens_before(stairs.num_steps)
    assert total - first - more <= max(half, (start + levels * increment) * LENGTH)
    assert first + more - total <= declared["end"] * LENGTH / 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 60), st.booleans())
def test_a_ramped_plan_reads_what_a_constant_one_reads(seed, start, levels, windows, mixed):
    """Only where a batch ends changes: the samples, end to end, are those of any other batch size; a ramp of shares included."""
    shares = {"a": {"start": 0, "end": 1}, "b": {"start": 1, "end": 0}} if mixed else {"a": "1/3", "b": "2/3"}
    size = ramp(start, start * (levels + 1), start, windows * LENGTH)
    ramped = compiled(stage(tokens=(windows + 40) * LENGTH, batch_size=size, mixture=shares), seeds={"data": seed})
    one = compiled(stage(tokens=ramped.num_samples * LENGTH, batch_size=1, mixture={"a": "1/3", "b": "2/3"}), seeds={"data": seed})
    for name in ("source", "window", "epoch"):
        mine = np.concatenate([getattr(ramped.samples(step), name) for step in range(ramped.num_steps)])
        if not mixed:
            assert (mine == np.concatenate([getattr(one.samples(step), name) for step in range(one.num_steps)])).all()
    for step in range(0, ramped.num_steps + 1, 7):
        drawn = {"a": 0, "b": 0}
        for before in range(step):
            for index in ramped.samples(before).source.tolist():
                drawn[ramped.sources[index]] += 1
        assert ramped.cursors(step) == drawn


def test_a_plain_plan_is_what_it_was():
    """Fingerprint and samples of a plan, computed before stages knew ramps and branches."""
    stages = [
        stage("one", 6400, 4, {"a": 0.25, "b": 0.75}),
        stage("two", 6400, 8, {"a": {"start": 0, "end": 1}, "b": {"start": 1, "end": 0}}, sequence_length=32),
        stage("three", 1000, 6, {"a": 1}, restart=True),
    ]
    plan = compiled(*stages, seeds={"data": 7})
    assert plan.fingerprint == "93d3fe99d9b999e28eae2f41e6dd558aab7a8db807a92d4a44541349efa80234"
    digest = hashlib.sha256()
    for step in range(plan.num_steps):
        found = plan.samples(step)
        digest.update(found.source.tobytes() + found.window.tobytes() + found.epoch.tobytes())
    assert digest.hexdigest() == "5d8298814bc02b436a3663b1629752a92cc694e8eda11632a474911f597faefd"


STEP = 4 * LENGTH
"""Tokens of a step of 4 windows."""


def steps(number, name="one", **rate):
    return stage(name, number * STEP, rate=rate)


def goes_on(number, name="two", **more):
    return stage(name, number * STEP, rate="continue", **more)


ROOT = math.sqrt(0.5)
COSINE = [4, 2 + 2 * ROOT, 2, 2 - 2 * ROOT, 0]
DECAY = {"shape": "wsd", "peak": 4.0, "decay_tokens": 4 * STEP}
TABLES = [
    ("cosine over two stages", [steps(2, shape="cosine", peak=4.0), goes_on(3)], COSINE),
    (
        "inverse square root",
        [steps(5, shape="inverse_sqrt", peak=4.0, warmup_tokens=STEP)],
        [4, 4 * ROOT, 4 / math.sqrt(3), 2, 4 / math.sqrt(5)],
    ),
    (
        "inverse square root, timescale",
        [steps(3, shape="inverse_sqrt", peak=4.0, warmup_tokens=2 * STEP, timescale_tokens=3 * STEP), goes_on(8)],
        [2, 4, *(4 * math.sqrt(3 / (3 + behind)) for behind in range(1, 10))],
    ),
    (
        "cooldown to a value",
        [steps(2, shape="constant", peak=4.0), steps(3, "two", shape="linear", peak="continue", final=1.0)],
        [4, 4, 4, 2.5, 1],
    ),
    (
        "rewarm from 0, from a value, from the last rate",
        [
            steps(2, shape="linear", peak=4.0, final=1.0),
            steps(2, "two", shape="constant", peak=2.0, warmup_tokens=2 * STEP),
            steps(2, "three", shape="constant", peak=3.0, warmup_tokens=2 * STEP, warmup_start=1.0),
            steps(2, "four", shape="constant", peak=5.0, warmup_tokens=2 * STEP, warmup_start="continue"),
        ],
        [4, 1, 1, 2, 2, 3, 4, 5],
    ),
    (
        "wsd, cosine",
        [steps(5, shape="wsd", peak=4.0, decay_tokens=4 * STEP, decay_shape="cosine")],
        [4, 2 + 4 * ROOT / 2, 2, 2 - 4 * ROOT / 2, 0],
    ),
    (
        "wsd, 1-sqrt",
        [steps(5, shape="wsd", peak=4.0, decay_tokens=4 * STEP, decay_shape="1-sqrt")],
        [4, 2, 4 - 4 * ROOT, 4 - 4 * math.sqrt(0.75), 0],
    ),
    (
        "wsd, exponential",
        [steps(5, **DECAY, final=0.25, decay_shape="exponential")],
        [4, 2, 1, 0.5, 0.25],
    ),
    (
        "a ramp of the batch: tokens decide",  # batches of 1, 1, 2, 3, 3 windows: 1, 2, 4, 7, 10 of 10 at their ends
        [stage(tokens=10 * LENGTH, batch_size=ramp(1, 3, 1, 4 * LENGTH), rate={"shape": "linear", "peak": 9.0})],
        [9, 8, 6, 3, 0],
    ),
    (
        "warm-up over a ramp of the batch",
        [
            stage(
                tokens=10 * LENGTH,
                batch_size=ramp(1, 3, 1, 4 * LENGTH),
                rate={"shape": "constant", "peak": 4.0, "warmup_tokens": 3 * LENGTH},
            )
        ],
        [1, 2, 4, 4, 4],
    ),
]


@pytest.mark.parametrize("stages, expected", [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_rates_by_hand(stages, expected):
    assert rates(*stages) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_a_schedule_over_two_stages_is_that_of_one(tmp_path):
    shape = {"shape": "wsd", "peak": 0.3, "final": 0.1, "warmup_tokens": 3 * STEP, "decay_tokens": 9 * STEP, "decay_shape": "1-sqrt"}
    assert rates(steps(7, **shape), goes_on(5), goes_on(8, "three")) == rates(steps(20, **shape))


def trunk(stages, until, plan="p"):
    return {"stages": stages, "until": until, "plan": plan}


def branched(step, parts, *stages):
    return config(*stages, branch={"run": "trunk", "step": step, "history": parts})


def plan_of(run):
    windows = {name: lambda length, number=number: (number - 1) // length for name, number in TOKENS.items()}
    return compile_plan(run, windows, {name: name for name in TOKENS})


def test_a_branch_in_a_ramp_reads_its_trunks_samples_and_ends_its_schedule():
    """Left inside a ramp of batch and of shares, at a rate that its trunk's schedule over two stages decides."""
    shares = {"a": {"start": 0, "end": 1}, "b": {"start": 1, "end": 0}}
    size = ramp(2, 6, 2, 60 * LENGTH)
    whole = [stage(tokens=100 * LENGTH, batch_size=size, mixture=shares, rate={"shape": "cosine", "peak": 1.0}), goes_on(10)]
    of_trunk = compiled(*whole)
    own = stage("own", 6 * STEP, rate={"shape": "linear", "peak": "continue", "final": 0.0}, mixture={"b": 1})
    for step in (1, 5, 17, 20, of_trunk.stages[1].first_step + 3):
        run = branched(step, [trunk(whole, step)], own)
        plan = plan_of(run)
        assert plan.num_steps == step + 6
        assert disagreement(of_trunk, plan, 0, step) is None
        assert plan.cursors(step) == of_trunk.cursors(step)
        assert plan.stages[-1].cursors.tolist() == [of_trunk.cursors(step)[name] for name in plan.sources]
        assert all(abs(drift) < 1 * len(plan.stages) for drift in plan.drift().values())
        reached = Schedule(config(*whole)).at(step - 1)
        found = Schedule(run)
        assert [found.at(at) for at in range(step)] == [Schedule(config(*whole)).at(at) for at in range(step)]
        assert [found.at(step + at) for at in range(6)] == pytest.approx([reached * (5 - at) / 5 for at in range(6)])
        again = parse_config(run.model_dump(mode="json"), RunConfig, dump_yaml(run))
        assert plan_of(again).fingerprint == plan.fingerprint
        assert any("(trunk)" in line for line in plan_table(plan))


def test_a_branch_of_a_branch_starts_where_each_was_left():
    first = [steps(10, shape="constant", peak=1.0)]
    second = [steps(8, "own", shape="linear", peak="continue", final=0.0)]
    run = branched(9, [trunk(first, 5), trunk(second, 9)], steps(2, "last", shape="constant", peak="continue"))
    found = Schedule(run)
    assert [found.at(step) for step in range(11)] == pytest.approx([1] * 5 + [1, 6 / 7, 5 / 7, 4 / 7] + [4 / 7] * 2)
    assert plan_of(run).num_steps == 11


def test_disagreements_are_named():
    plan = compiled(stage(tokens=40 * STEP, mixture={"a": 0.5, "b": 0.5}))
    longer = compiled(stage(tokens=80 * STEP, mixture={"a": 0.5, "b": 0.5}))
    assert disagreement(plan, longer, 0, 40) is None
    assert disagreement(longer, plan, 0, 40) is None
    assert "end at step 40" in disagreement(longer, plan, 0, 41)
    other = compiled(stage(tokens=40 * STEP, mixture={"a": 0.4, "b": 0.6}))
    assert "step 0 read window" in disagreement(plan, other, 0, 40)
    moved = compiled(stage("x", 20 * STEP, mixture={"a": 0.5, "b": 0.5}), stage("y", 20 * STEP, mixture={"b": 0.5, "a": 0.5}))
    assert disagreement(plan, moved, 0, 40) is None, "an even number of windows: the second half is what it was"
    later = compiled(stage("x", 30 * STEP, mixture={"a": 0.5, "b": 0.5}), stage("y", 10 * STEP, mixture={"b": 1}))
    assert disagreement(plan, later, 0, 30) is None
    assert "step 30 " in disagreement(plan, later, 0, 31)
    infilling = compiled(stage(tokens=40 * STEP, mixture={"a": 0.5, "b": 0.5}, objective={"fim": {"rate": 0.5}}))
    assert "step 0 was for the objective 'clm', and would have been" in disagreement(plan, infilling, 0, 40)
    parted = [stage("x", 30 * STEP, mixture={"a": 0.5, "b": 0.5})]
    parted.append(stage("y", 10 * STEP, mixture={"a": 0.5, "b": 0.5}, objective={"fim": {"rate": 0.5}}))
    assert disagreement(plan, compiled(*parted), 0, 30) is None
    assert "step 30 was for the objective" in disagreement(plan, compiled(*parted), 0, 31)
    smaller = compiled(stage(tokens=40 * STEP, batch_size=2, mixture={"a": 0.5, "b": 0.5}))
    assert "had 4 windows, and would have had 2" in disagreement(plan, smaller, 0, 40)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    share=st.sampled_from(["1/3", "0.35", "0.5", "0.999"]),
    ramped=st.booleans(),
)
def test_constant_shares_are_alike_as_far_as_their_batches_are(lengths, share, ramped):
    """What `disagreement` takes for granted: how long a stage is says nothing of the order of its samples."""
    batch = ramp(2, 6, 2, LENGTH) if ramped else 4
    shorter, longer = (
        compiled(stage(tokens=number * STEP, batch_size=batch, mixture={"a": share, "b": str(1 - Fraction(share))}))
        for number in sorted(lengths)
    )
    assert disagreement(longer, shorter, 0, shorter.num_steps) is None
    for step in range(shorter.num_steps):
        one, other = shorter.samples(step), longer.samples(step)
        assert all(np.array_equal(getattr(one, field), getattr(other, field)) for field in ("source", "window", "epoch"))


def test_long_stages_are_compared_without_their_samples():
    def large(**fields):
        declared = config(stage(mixture={"a": 0.5, "b": 0.5}, **fields))
        return compile_plan(declared, dict.fromkeys(TOKENS, lambda length: 10**13 // length), {name: name for name in TOKENS})

    plan, longer = large(tokens=10**12), large(tokens=2 * 10**12)
    assert disagreement(plan, longer, 0, plan.num_steps) is None, "15 thousand million steps"
    moved = large(tokens=10**12, batch_size=ramp(4, 8, 4, 640))
    assert "step 10 had 4 windows, and would have had 8" in disagreement(plan, moved, 0, moved.num_steps)


BAD = [
    ([stage(batch_size=ramp(2, 7, 2, 64))], r"stages\[0\].batch_size.increment: 2 does not divide end − start = 5"),
    ([stage(batch_size=ramp(4, 4, 2, 64))], r"stages\[0\].batch_size.end: 4 is not above start 4"),
    ([stage(batch_size=ramp(2, 6, 2, 6400))], r"batch_size.tokens: the ramp's 6,400 are more than the stage's 640"),
    ([stage(batch_size={"start": 2, "end": 4, "tokens": 64})], r"stages\[0\].batch_size.increment: required"),
    ([stage(batch_size=0)], r"stages\[0\].batch_size: Input should be greater than or equal to 1"),
    ([stage(rate="continue")], "there is no schedule before the first stage"),
    ([stage(rate={"shape": "linear", "peak": "continue"})], r"learning_rate.peak: 'continue' takes on the rate of the stage before"),
    ([stage(rate={"shape": "linear", "peak": -1})], r"stages\[0\].learning_rate.peak: Input should be greater than 0"),
    ([stage(rate={"shape": "linear", "peak": 1, "peek": 1})], r"stages\[0\].learning_rate.peek: unknown key; did you mean 'peak'"),
    ([stage(rate={"shape": "inverse_sqrt", "peak": 1})], "timescale_tokens: 'inverse_sqrt' needs one"),
    ([stage(rate={"shape": "cosine", "peak": 1, "timescale_tokens": 5})], "only 'inverse_sqrt' has one"),
    ([stage(rate={"shape": "wsd", "peak": 1, "decay_tokens": 9, "decay_shape": "exponential"})], "never comes to 0"),
    ([stage(rate={"shape": "linear", "peak": 1, "decay_shape": "cosine"})], "only 'wsd' has one, 'linear' would ignore it"),
    ([stage(rate={"shape": "linear", "peak": 1, "warmup_start": 0.5})], "warmup_start: there is no warm-up"),
    ([stage(rate={"shape": "linear", "peak": 1, "warmup_start": 2, "warmup_tokens": 64})], "warmup_start: 2 is above the peak 1"),
    ([stage(), stage("two", begins_at_tokens=700)], r"stages\[1\].begins_at_tokens: 700 leaves a gap of 60 tokens: .* end at 640"),
    ([stage(), stage("two", begins_at_tokens=600)], r"stages\[1\].begins_at_tokens: 600 overlaps by 40 tokens"),
    ([stage(rate={"shape": "linear", "peak": 1, "warmup_tokens": 700}), stage("two", 50, rate="continue")], "longer than the stages"),
]


@pytest.mark.parametrize("stages, words", BAD)
def test_stage_tables_that_cannot_be_are_refused_in_one_line(stages, words):
    with pytest.raises(UserError, match=words) as refused:
        config(*stages)
    assert len(refused.value.problems) == 1, refused.value.problems


def test_a_rate_that_has_come_to_0_cannot_be_continued():
    ended = [steps(2, shape="linear", peak=1.0), steps(2, "two", shape="constant", peak="continue")]
    with pytest.raises(UserError, match=r"stages\[1\].learning_rate.peak: the stage before ends at a rate of 0"):
        Schedule(config(*ended))


def test_every_size_of_a_ramp_must_suit_the_layout():
    run = config(stage(tokens=6400, batch_size=ramp(4, 16, 6, 640)), micro_batch_size=2)
    assert data_ranks(run, 1) == 1
    with pytest.raises(UserError, match=r"10 windows cannot be shared by 2 data-parallel ranks .* start and increment a multiple of 4"):
        data_ranks(run, 2)
    layout = {"pipeline": 2, "virtual_stages": 1}
    data_ranks(config(stage(tokens=6400, batch_size=ramp(4, 16, 6, 640)), micro_batch_size=2, parallel=layout), 2)
    with pytest.raises(UserError, match=r"stages\[0\].batch_size: 4 \(on the ramp from 4 to 16\) is not a multiple of micro_batch_size 3"):
        config(stage(tokens=6400, batch_size=ramp(4, 16, 6, 640)), micro_batch_size=3)


def test_every_size_of_a_ramp_must_suit_an_interleaved_schedule():
    layout = {"pipeline": 2, "virtual_stages": 2}
    model = {"num_layers": 4, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    config(stage(batch_size=ramp(2, 8, 2, 64)), parallel=layout, model=model)
    with pytest.raises(UserError, match=r"3 windows are 3 micro-batches, .* make start and increment a multiple of 2"):
        config(stage(batch_size=ramp(2, 5, 1, 64)), parallel=layout, model=model)


def test_a_history_that_does_not_end_where_the_branch_begins_is_refused():
    with pytest.raises(UserError, match=r"branch.history: its parts end at \[5\], the branch at step 9"):
        branched(9, [trunk([steps(10, shape="constant", peak=1.0)], 5)], stage())


def test_places_that_are_right_pass():
    found = config(stage(begins_at_tokens=0), stage("two", begins_at_tokens=640.0), stage("three", begins_at_tokens=1280))
    assert [one.begins_at_tokens for one in found.stages] == [0, 640, 1280]
