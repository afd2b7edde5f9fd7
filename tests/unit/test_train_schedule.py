"""Learning rates: a table worked out by hand, exact endpoints, bounds, continuity."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.config import LearningRate
from megatron_codemix.train.schedule import decay_steps, learning_rate, warmup_steps

TOKENS = 1024


def rates(rate: LearningRate, num_steps: int, tokens_per_step: int = TOKENS) -> list[float]:
    return [learning_rate(rate, step, num_steps, tokens_per_step) for step in range(num_steps)]


TABLE = [
    ({"shape": "constant", "peak": 2.0}, 3, [2, 2, 2]),
    ({"shape": "constant", "peak": 2.0, "warmup_tokens": 4 * TOKENS}, 6, [0.5, 1, 1.5, 2, 2, 2]),
    ({"shape": "constant", "peak": 2.0, "warmup_tokens": 3 * TOKENS + 1}, 5, [0.5, 1, 1.5, 2, 2]),
    ({"shape": "linear", "peak": 4.0}, 5, [4, 3, 2, 1, 0]),
    ({"shape": "linear", "peak": 4.0, "final": 1.0, "warmup_tokens": 2 * TOKENS}, 5, [2, 4, 3, 2, 1]),
    ({"shape": "cosine", "peak": 4.0}, 5, [4, 2 + math.sqrt(2), 2, 2 - math.sqrt(2), 0]),
    ({"shape": "cosine", "peak": 4.0, "final": 2.0, "warmup_tokens": TOKENS}, 3, [4, 3, 2]),
    ({"shape": "wsd", "peak": 4.0, "warmup_tokens": 2 * TOKENS, "decay_tokens": 2 * TOKENS}, 6, [2, 4, 4, 4, 2, 0]),
    ({"shape": "wsd", "peak": 4.0, "final": 1.0, "decay_tokens": 3 * TOKENS}, 5, [4, 4, 3, 2, 1]),
    ({"shape": "wsd", "peak": 4.0, "decay_tokens": 4 * TOKENS}, 4, [3, 2, 1, 0]),
    ({"shape": "linear", "peak": 4.0}, 1, [4]),
    ({"shape": "cosine", "peak": 4.0, "warmup_tokens": 2 * TOKENS}, 2, [2, 4]),
    ({"shape": "wsd", "peak": 4.0, "warmup_tokens": TOKENS + 1, "decay_tokens": TOKENS - 1}, 2, [2, 4]),
]


@pytest.mark.parametrize("fields, num_steps, expected", TABLE)
def test_table(fields, num_steps, expected):
    assert rates(LearningRate(**fields), num_steps) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@st.composite
def stages(draw):
    peak = draw(st.floats(1e-6, 1e-1))
    num_steps = draw(st.integers(1, 300))
    whole = num_steps * TOKENS
    warmup = draw(st.integers(0, whole))
    rate = LearningRate(
        shape=draw(st.sampled_from(["constant", "linear", "cosine", "wsd"])),
        peak=peak,
        final=peak * draw(st.floats(0.0, 1.0)),
        warmup_tokens=warmup,
        decay_tokens=draw(st.integers(1, max(whole - warmup, 1))),
    )
    return rate, num_steps


@settings(max_examples=150, deadline=None)
@given(stages())
def test_bounds_endpoints_and_direction(stage):
    rate, num_steps = stage
    values = rates(rate, num_steps)
    warmup = warmup_steps(rate, num_steps, TOKENS)
    after = values[max(warmup - 1, 0) :]
    assert all(0 <= value <= rate.peak for value in values)
    assert all(value >= rate.final for value in after)
    assert values[:warmup] == sorted(values[:warmup])
    # a peak and a final rate that are a rounding apart leave no room between: a rate may rise by one
    assert all(later <= earlier * (1 + 2**-52) for earlier, later in itertools.pairwise(after))
    if warmup:
        assert values[warmup - 1] == rate.peak
    elif rate.shape != "wsd" or decay_steps(rate, num_steps, TOKENS) < num_steps:
        assert values[0] == rate.peak
    decays = {"constant": 0, "linear": num_steps - 1, "cosine": num_steps - 1, "wsd": num_steps}[rate.shape]
    if decays and warmup < num_steps and (warmup or num_steps > 1):
        assert values[-1] == rate.final


@settings(max_examples=150, deadline=None)
@given(stages())
def test_no_jump_is_larger_than_the_steepest_declared_slope(stage):
    rate, num_steps = stage
    values = rates(rate, num_steps)
    warmup = warmup_steps(rate, num_steps, TOKENS)
    drop = rate.peak - rate.final
    falling = {
        "constant": 0.0,
        "linear": drop / max(num_steps - 1 - max(warmup - 1, 0), 1),
        "cosine": drop * math.pi / 2 / max(num_steps - 1 - max(warmup - 1, 0), 1),
        "wsd": drop / max(decay_steps(rate, num_steps, TOKENS), 1),
    }[rate.shape]
    slope = max(rate.peak / warmup if warmup else 0.0, falling) * (1 + 1e-9)
    assert all(abs(after - before) <= slope for before, after in itertools.pairwise(values))


@settings(max_examples=50, deadline=None)
@given(stages(), st.integers(1, 8))
def test_only_tokens_matter_for_the_lengths(stage, factor):
    """The same declaration at `factor` times the batch takes 1/factor of the warm-up steps, rounded up."""
    rate, num_steps = stage
    assert warmup_steps(rate, num_steps, TOKENS * factor) == min(-(-rate.warmup_tokens // (TOKENS * factor)), num_steps)


@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_of_another_stage_is_refused(step):
    with pytest.raises(ValueError, match="not in a stage of 3"):
        learning_rate(LearningRate(shape="constant", peak=1.0), step, 3, TOKENS)
