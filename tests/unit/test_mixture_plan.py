"""Stages → plan: rounding, cursors, epochs, prefixes, random access."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import compile_plan, plan_table


def stage(name="main", tokens=6400, batch_size=4, sequence_length=16, restart=False, **mixture):
    rate = {"shape": "constant", "peak": 0.001}
    return {
        "name": name,
        "tokens": tokens,
        "mixture": mixture,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "learning_rate": rate,
        "restart": restart,
    }


def make(stages, tokens, seed=0, max_epochs=1e6, **extra):
    """A plan over sources of `tokens` {name: tokens}, as one shard each."""
    sources = {name: {"path": f"shards/{name}", "max_epochs": max_epochs} for name in tokens}
    shape = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 8}
    raw = {
        "name": "r",
        "output": "o",
        "tokenizer": "t",
        "sources": sources,
        "model": shape,
        "stages": stages,
        "seeds": {"data": seed},
        **extra,
    }
    windows = {name: lambda length, number=number: max(0, (number - 1) // length) for name, number in tokens.items()}
    return compile_plan(parse_config(raw, RunConfig, "test"), windows, {name: f"print of {name}" for name in tokens})


def read(plan, first=0, end=None):
    """Every sample of some steps: [(source, epoch, window)] in order."""
    found = []
    for step in range(first, plan.num_steps if end is None else end):
        samples = plan.samples(step)
        names = [plan.sources[index] for index in samples.source]
        found += list(zip(names, samples.epoch.tolist(), samples.window.tolist(), strict=True))
    return found


def of(name, samples):
    return [(epoch, window) for source, epoch, window in samples if source == name]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_sources=st.integers(2, 40))
def test_exactly_once_per_epoch_and_counts_in_bound(data, num_sources):
    names = [f"s{number}" for number in range(num_sources)]
    parts = data.draw(st.lists(st.integers(0, 9), min_size=num_sources, max_size=num_sources).filter(any))
    mixture = {name: f"{part}/{sum(parts)}" for name, part in zip(names, parts, strict=True)}
    tokens = {name: data.draw(st.integers(17, 600)) for name in names}
    batch_size = data.draw(st.integers(1, 20))
    plan = make([stage(tokens=16 * 1500, batch_size=batch_size, **mixture)], tokens, seed=data.draw(st.integers(0, 99)))
    samples = read(plan)
    assert len(samples) == plan.num_samples
    for name, part in zip(names, parts, strict=True):
        windows = (tokens[name] - 1) // 16
        mine = of(name, samples)
        assert abs(len(mine) - len(samples) * Fraction(part, sum(parts))) < 1
        for number in range(len(mine) // windows):
            epoch = mine[number * windows : (number + 1) * windows]
            assert sorted(epoch) == [(number, window) for window in range(windows)], "every window of an epoch once"
        rest = mine[len(mine) // windows * windows :]
        assert len(set(rest)) == len(rest)
        assert plan.epochs()[name] == Fraction(len(mine), windows)
    assert plan.cursors(plan.num_steps) == {name: len(of(name, samples)) for name in names}


def test_stages_are_rounded_to_whole_batches_and_say_so():
    plan = make([stage("a", tokens=1000, a=1), stage("b", tokens=96, a=1), stage("c", tokens=1, a=1)], {"a": 10_000})
    assert [one.num_steps for one in plan.stages] == [16, 2, 1]  # 15.6 → 16; 1.5 → 2; never 0
    assert [one.tokens - one.declared_tokens for one in plan.stages] == [24, 32, 63]
    assert plan.num_steps == 19
    assert [plan.stage_at(step).name for step in (0, 15, 16, 17, 18, 19)] == ["a", "a", "b", "b", "c", "c"]
    table = "\n".join(plan_table(plan))
    assert "+24" in table
    for wrong in (-1, 20):
        with pytest.raises(ValueError, match="outside"):
            plan.stage_at(wrong)
    with pytest.raises(ValueError, match="outside"):
        plan.samples(19)


def test_sample_index_and_place():
    plan = make([stage("a", tokens=640, batch_size=4, a=1), stage("b", tokens=640, batch_size=8, a=1)], {"a": 10_000})
    assert plan.num_samples == 80
    for sample in (0, 3, 4, 39, 40, 47, 79):
        where, step, place = plan.locate(sample)
        assert plan.first_sample(step) + place == sample
        assert plan.stage_at(step) is where
    with pytest.raises(ValueError, match="outside"):
        plan.locate(80)


def test_runs_that_differ_only_in_shares_read_the_same_prefix():
    tokens = {"code": 5000, "text": 7000}
    quarter = read(make([stage(code=0.25, text=0.75)], tokens))
    half = read(make([stage(code=0.5, text=0.5)], tokens))
    ramp = read(make([stage(code={"start": 0, "end": 1}, text={"start": 1, "end": 0})], tokens))
    alone = read(make([stage(text=1)], tokens))
    for name in tokens:
        readings = [of(name, run) for run in (quarter, half, ramp, alone)]
        longest = max(readings, key=len)
        assert len(longest) > 10
        assert all(longest[: len(reading)] == reading for reading in readings)


def test_order_ignores_the_order_of_lines_and_other_sources():
    tokens = {"a": 3000, "b": 4000, "c": 5000}
    one = read(make([stage(a=0.2, b=0.3, c=0.5)], tokens))
    other = read(make([stage(c=0.5, b=0.3, a=0.2)], dict(reversed(tokens.items()))))
    assert one == other
    with_unused = read(make([stage(a=0.2, b=0.3, c=0.5, d=0)], {"d": 100, **tokens}))
    assert one == with_unused


def test_seed_changes_the_order_and_not_the_sources():
    tokens = {"a": 3000, "b": 4000}
    one, other = read(make([stage(a=0.5, b=0.5)], tokens, seed=1)), read(make([stage(a=0.5, b=0.5)], tokens, seed=2))
    assert [name for name, _, _ in one] == [name for name, _, _ in other]
    assert of("a", one) != of("a", other)


def test_cursors_continue_through_stages_unless_restarted():
    tokens = {"a": 5000, "b": 5000}
    stages = [stage("one", a=0.5, b=0.5), stage("two", a=0.25, b=0.75, batch_size=8)]
    plan = make(stages, tokens)
    samples = read(plan)
    in_one_go = {name: of(name, read(make([stage(tokens=20_000, **{name: 1})], tokens))) for name in tokens}
    for name in tokens:
        assert of(name, samples) == in_one_go[name][: len(of(name, samples))]
    assert plan.stages[1].cursors.tolist() == [200, 200]
    restarted = make([stages[0], {**stages[1], "restart": True}], tokens)
    assert restarted.cursors(restarted.stages[1].first_step) == {"a": 0, "b": 0}
    second = read(restarted, restarted.stages[1].first_step)
    for name in tokens:
        assert of(name, second) == in_one_go[name][: len(of(name, second))]
    assert sum(restarted.epochs().values()) == sum(plan.epochs().values()), "reading again is reading more"


def test_zero_shares_and_sources_without_a_stage():
    plan = make([stage("one", a=1, b=0), stage("two", a=0.5, b=0.5)], {"a": 5000, "b": 5000, "unused": 17})
    samples = read(plan)
    assert not of("b", samples[:100])
    assert of("b", samples)
    assert plan.epochs()["unused"] == 0
    assert plan.cursors(0) == {"a": 0, "b": 0, "unused": 0}


def test_another_sequence_length_restates_cursors_upwards_and_reports_the_overlap():
    plan = make([stage("short", a=1, tokens=3200), stage("long", a=1, tokens=3200, sequence_length=48, batch_size=2)], {"a": 9601})
    # 200 of 600 windows read: a third, so the 67th of 200 (66.7 rounded up) is next.
    assert plan.stages[0].drawn.tolist() == [200]
    assert plan.stages[1].cursors.tolist() == [67]
    drawn = int(plan.stages[1].drawn[0])
    assert plan.stages[1].overlap[0] == Fraction(drawn, 3), "a third of what is drawn was read before, cut otherwise"
    assert any("cuts 'a' anew" in line for line in plan_table(plan))
    assert "expected_overlap" in plan.as_json()["stages"][1]
    back = make(
        [stage("x", a=1, tokens=3200), stage("y", a=1, tokens=3264, sequence_length=48, batch_size=2), stage("z", a=1, tokens=320)],
        {"a": 9601},
    )
    assert back.stages[2].cursors[0] >= (200 * 16 + back.stages[1].tokens) / 16, "never understated"


def test_a_corpus_that_cannot_feed_the_plan_is_refused():
    with pytest.raises(UserError) as caught:
        make([stage(a=0.5, b=0.5, tokens=6400)], {"a": 1601, "b": 16}, max_epochs=1.0)
    assert any("'b' has no window of 16 tokens" in problem for problem in caught.value.problems)
    with pytest.raises(UserError) as caught:
        make([stage(a=0.5, b=0.5, tokens=6400)], {"a": 1601, "b": 6400}, max_epochs=1.5)
    (problem,) = caught.value.problems
    for expected in (
        "sources.a.max_epochs",
        "need 3,200 tokens of 'a'",
        "2 epochs",
        "holds 1,600",
        "allows 2,400",
        "raise max_epochs to 2",
    ):
        assert expected in problem
    assert make([stage(a=0.5, b=0.5, tokens=6400)], {"a": 1601, "b": 6400}, max_epochs=2.0).epochs()["a"] == 2


def test_every_source_too_small_is_named_at_once():
    with pytest.raises(UserError) as caught:
        make([stage(a=0.5, b=0.5, tokens=64_000)], {"a": 1601, "b": 6400}, max_epochs=0.5)
    assert [problem.split(".max_epochs")[0] for problem in caught.value.problems] == ["sources.a", "sources.b"]


def test_jump_anywhere_in_milliseconds():
    """Sample 5·10⁸ without the ones before it, and equal to what the run would have met there."""
    tokens = {"a": 10**13, "b": 10**12, "c": 3 * 10**12}
    plan = make([stage(tokens=10**13, batch_size=256, sequence_length=4096, a="1/3", b=0.125, c="13/24")], tokens)
    _, step, _ = plan.locate(5 * 10**8)
    begin = time.perf_counter()
    samples = plan.samples(step)
    assert time.perf_counter() - begin < 0.5, "measured: 3 ms; half a second leaves room for a busy machine"
    cursors = plan.cursors(step)
    again = make([stage(tokens=10**13, batch_size=256, sequence_length=4096, a="1/3", b=0.125, c="13/24")], tokens)
    for other in (step - 20, step - 1, step):
        last = again.samples(other)
    assert all(np.array_equal(getattr(samples, name), getattr(last, name)) for name in ("source", "window", "epoch"))
    for index, name in enumerate(plan.sources):
        assert abs(cursors[name] - plan.first_sample(step) * Fraction(plan.stages[0].mixture[name])) < 1
        assert plan.cursors(step + 1)[name] - cursors[name] == (samples.source == index).sum()


def test_samples_are_the_same_in_whatever_order_steps_are_asked():
    plan = make([stage("one", a=0.5, b=0.5), stage("two", a=0.1, b=0.9, batch_size=12)], {"a": 900, "b": 900})
    forward = read(plan)
    other = make([stage("one", a=0.5, b=0.5), stage("two", a=0.1, b=0.9, batch_size=12)], {"a": 900, "b": 900})
    steps = np.random.default_rng(0).permutation(other.num_steps).tolist()
    pieces = {step: read(other, step, step + 1) for step in steps}
    assert [sample for step in range(other.num_steps) for sample in pieces[step]] == forward
    with pytest.raises(ValueError, match="read-only"):
        plan.samples(0).window[0] = 1


def test_windows_between_equals_the_samples():
    stages = [stage("one", a=0.5, b=0.5), stage("two", a=0.1, b=0.9, batch_size=12)]
    plan = make(stages, {"a": 900, "b": 500})
    for part in plan.stages:
        first, end = part.first_step + 3, part.end_step - 2
        for number, name in enumerate(plan.sources):
            found = [(epoch, window) for epoch, ids in plan.windows_between(part, number, first, end) for window in ids.tolist()]
            assert found == of(name, read(plan, first, end))


def test_fingerprint_is_the_same_for_whatever_decides_no_sample():
    plans = [make([stage(a=0.5, b=0.5)], {"a": 5000, "b": 5000}, max_epochs=bound) for bound in (1.0, 7.0)]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert plans[0].as_json()["sources"]["a"]["max_epochs"] == 1.0


def test_fingerprint_covers_what_decides_the_samples():
    def fingerprint(seed=0, tokens=5000, **changed):
        return make([{**stage(a=0.5, b=0.5), **changed}], {"a": tokens, "b": 5000}, seed=seed).fingerprint

    fingerprints = [
        fingerprint(),
        fingerprint(seed=1),
        fingerprint(tokens=6000),
        fingerprint(batch_size=8),
        fingerprint(mixture={"a": 0.25, "b": 0.75}),
        fingerprint(restart=True),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert fingerprint() == fingerprint(learning_rate={"shape": "constant", "peak": 0.5})
    assert fingerprint() == fingerprint(mixture={"a": "1/2", "b": 0.5}), "one half is one half"
    plan = make([stage(a=0.5, b=0.5)], {"a": 5000, "b": 5000})
    stored = plan.as_json()
    assert stored["fingerprint"] == plan.fingerprint
    assert stored["sources"]["a"]["windows"] == {"16": 312}


def test_table_shows_what_a_user_needs():
    lines = plan_table(make([stage(tokens=1000, a="1/3", b={"start": "2/3", "end": "2/3"})], {"a": 5000, "b": 5000}))
    text = "\n".join(lines)
    for word in ("main", "+24", "1/3", "2/3", "epochs", "from window"):
        assert word in text
    assert text.split().count("main") == 1
