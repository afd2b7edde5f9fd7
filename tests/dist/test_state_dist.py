"""Training state on disk under every layout: handed from one to the next, and resumed at the same one bit for bit.

One launch of four processes (state_worker.py) runs them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOLERANCE = 1e-6
"""Of a loss in nats, fp32 without dropout, at another layout than the uninterrupted run's."""


@pytest.fixture(scope="module")
def results(shared: Callable[..., Path], launch: Callable[..., str]) -> dict[str, Any]:
    out = shared("state", lambda out: launch("state_worker.py", out, ranks=4))
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("links", ["chain", "engines"])
def test_training_through_many_layouts_is_one_training(links, results):
    if links not in results:
        pytest.skip("deepspeed is not installed: make env")
    chain = results[links]
    losses = [loss for part in chain["losses"].values() for loss in part]
    assert len(chain["losses"]) >= 8 and len(losses) == len(chain["uninterrupted"])
    differences = [abs(mine - theirs) for mine, theirs in zip(losses, chain["uninterrupted"], strict=True)]
    assert max(differences) <= TOLERANCE, chain
    assert chain["largest weight difference"] <= 1e-5  # AdamW moves a weight by about 1e-3 a step


def test_every_layout_resumes_bit_for_bit(results):
    assert {name.split(":")[0] for name in results["same"]} == {"fp32", "bf16"}
    for name, result in results["same"].items():
        for form in ("routine", "neutral"):
            assert result[form]["tensors"] > 4, name
            assert result[form]["equal"], f"{name}, from the {form} form: {result}"
        assert result["losses"] != result["before"]
