"""Two real context-parallel processes against one: exchanges, attention, training with recompute and dropout. One launch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def figures(shared: Callable[..., Path], launch: Callable[..., str]) -> dict[str, Any]:
    """What one process and two processes computed, by layout; both ranks of a layout must say the same."""
    folder = shared("context", lambda folder: [launch("context_worker.py", folder, ranks=ranks) for ranks in (1, 2)])
    alone, first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2"))
    drawn = (first.pop("drawn"), second.pop("drawn"))
    assert first == second
    return alone | first | {"drawn": drawn}


def _differ(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Largest difference of losses per target, of relative gradient norms, of nats per target and of log-probabilities."""
    assert first["targets"] == second["targets"]
    assert first["evaluated"] == second["evaluated"]
    losses = max(abs(a - b) / n for a, b, n in zip(first["losses"], second["losses"], first["targets"], strict=True))
    norms = max(abs(a - b) / a for a, b in zip(first["norms"], second["norms"], strict=True))
    nats = abs(first["nats"] - second["nats"]) / first["evaluated"]
    logs = (torch.tensor(first["logs"]) - torch.tensor(second["logs"])).abs().max().item()
    return max(losses, norms, nats, logs)


@pytest.mark.parametrize("axis", ["context", "tensor"])
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_two_ranks_train_what_one_does(figures, axis, recompute):
    assert _differ(figures["plain"], figures[f"{axis} {recompute}"]) < 1e-5


def test_bf16_is_near(figures):
    assert _differ(figures["bf16"], figures["context bf16"]) < 0.1


@pytest.mark.parametrize("axis", ["context", "tensor", "sequence"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recompute_drops_the_same_weights(figures, axis, recompute):
    """To the bit. Hidden dropout draws from the same generators in between, so a state restored wrongly would show."""
    assert figures[f"{axis} none dropout"] == figures[f"{axis} {recompute} dropout"]


@pytest.mark.parametrize("axis", ["context", "tensor", "sequence"])
def test_dropout_is_drawn_in_training(figures, axis):
    """Dropping 1 weight of 5 changes the loss; each rank draws for its own rows or heads, so no layout repeats another."""
    dropped = figures[f"{axis} none dropout"]
    for name in ("plain", "dropout"):
        assert abs(dropped["losses"][0] - figures[name]["losses"][0]) > 1e-3
    assert (torch.tensor(dropped["logs"]) - torch.tensor(figures["plain"]["logs"])).abs().max() < 1e-5


def test_tensor_parallel_ranks_drop_different_weights(figures):
    (first, again, mean, same), (other, _, other_mean, _) = figures["drawn"]
    assert len({first, again, other}) == 3
    assert mean == same == other_mean
