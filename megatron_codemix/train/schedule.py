"""The learning rate as a pure function of a stage's declaration and the step inside it.

A stage has N optimizer steps of `batch_size · sequence_length` tokens; update t (0 ≤ t < N) uses lr(t).
With W = ⌈warmup_tokens / tokens_per_step⌉ and D = ⌈decay_tokens / tokens_per_step⌉ (shortened to N − W):

    warm-up   t < W        peak · (t + 1) / W          so the first update is not wasted on a rate of 0
    constant  t ≥ W        peak
    linear    t ≥ W        peak + (final − peak) · u
    cosine    t ≥ W        final + (peak − final) · (1 + cos πu) / 2      (SGDR, arXiv 1608.03983, equation 5)
    wsd       t < N − D    peak, then peak + (final − peak) · v           (arXiv 2404.06395, section 4.1, linear decay)

    p = max(W − 1, 0), the last step at peak;  u = (t − p) / (N − 1 − p);  v = (t − (N − 1 − D)) / D

so that linear, cosine and wsd are exactly `final` at the stage's last step and, after warm-up, exactly
`peak` at step p. A stage without a step after p stays at peak.
"""

from __future__ import annotations

import math

from megatron_codemix.config import LearningRate


def warmup_steps(rate: LearningRate, num_steps: int, tokens_per_step: int) -> int:
    """Steps of warm-up (W): its tokens rounded up to whole steps, at most the stage."""
    return min(-(-rate.warmup_tokens // tokens_per_step), num_steps)


def decay_steps(rate: LearningRate, num_steps: int, tokens_per_step: int) -> int:
    """Steps of a wsd stage's decay (D): its tokens rounded up to whole steps, shortened to what warm-up leaves."""
    return min(-(-rate.decay_tokens // tokens_per_step), num_steps - warmup_steps(rate, num_steps, tokens_per_step))


def learning_rate(rate: LearningRate, step: int, num_steps: int, tokens_per_step: int) -> float:
    """Learning rate of update `step` (0-based within its stage) of a stage of `num_steps` steps.

    Raises ValueError when `step` is not one of the stage's.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step} is not in a stage of {num_steps} steps; steps count from 0 within their stage")
    warmup = warmup_steps(rate, num_steps, tokens_per_step)
    if step < warmup:
        return rate.peak * ((step + 1) / warmup)
    if rate.shape == "wsd":
        decay = decay_steps(rate, num_steps, tokens_per_step)
        return _between(rate, _fraction(step - (num_steps - 1 - decay), decay))
    top = max(warmup - 1, 0)
    fraction = _fraction(step - top, num_steps - 1 - top)
    if rate.shape == "linear":
        return _between(rate, fraction)
    if rate.shape == "cosine":
        return _between(rate, (1.0 - math.cos(math.pi * fraction)) / 2.0)
    return rate.peak


def _fraction(done: int, whole: int) -> float:
    """How far a decay has come, 0 before it begins and exactly 1 at its end."""
    return max(done, 0) / whole if whole > 0 else 0.0


def _between(rate: LearningRate, fraction: float) -> float:
    # clamped, because a·x + b·(1−x) can leave [a, b] by one rounding
    value = rate.final * fraction + rate.peak * (1.0 - fraction)
    return min(max(value, rate.final), rate.peak)
