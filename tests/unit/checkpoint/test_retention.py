"""Which checkpoints go: a pure function, checked against its three promises."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.checkpoint.retention import doomed


def test_by_hand():
    assert doomed([1, 2, 3, 10], 10, keep=2, keep_every_steps=0) == [1, 2]
    assert doomed([100, 200, 300, 400, 450], 450, keep=1, keep_every_steps=200) == [100, 300]
    assert doomed([100, 170, 200, 300], 300, keep=1, keep_every_steps=0, keep_steps=[170, 999]) == [100, 200]
    assert doomed([5], 5, keep=1, keep_every_steps=0) == []
    assert doomed([5, 7, 20], 7, keep=1, keep_every_steps=0) == [5], "what lies above is not counted"


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 60), min_size=1), st.data(), st.integers(0, 5), st.integers(0, 20))
def test_the_newest_and_the_multiples_stay_and_nothing_above_is_touched(steps, data, keep, every):
    published = data.draw(st.sampled_from(sorted(steps)))
    gone = doomed(steps, published, keep, every)
    assert gone == sorted(set(gone)) and set(gone) <= steps
    stay = steps - set(gone)
    assert published in stay, "the last good one is never deleted"
    assert {step for step in steps if step > published} <= stay
    newest = sorted(step for step in steps if step <= published)[-max(keep, 1) :]
    multiples = {step for step in steps if every and step % every == 0}
    assert {step for step in stay if step <= published} == set(newest) | {step for step in multiples if step <= published}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, unique=True), st.integers(1, 4), st.integers(0, 30))
def test_pruning_after_each_save_keeps_what_pruning_once_would(steps, keep, every):
    steps = sorted(steps)
    kept: set[int] = set()
    for step in steps:
        kept.add(step)
        kept -= set(doomed(kept, step, keep, every))
    assert kept == set(steps) - set(doomed(steps, steps[-1], keep, every))
