"""Fill-in-the-middle, prefixes, replaced inputs and loss weights under TP2, PP2, CP2, DP2 and ZeRO, against one process. One launch.

Token by token: which log-probabilities change when one token changes is what the masks say, in every layout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

pytestmark = pytest.mark.timeout(1800)

_WORKER = Path(__file__).with_name("objective_worker.py")
_SPEC = importlib.util.spec_from_file_location("objective_worker", _WORKER)
assert _SPEC is not None
assert _SPEC.loader is not None
worker: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(worker)
NO_ZERO = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")
ZERO = [pytest.param(name, marks=NO_ZERO) for name in worker.ZERO]
NAMES = [*worker.LAYOUTS, *(f"sliding {name}" for name in worker.SLIDING), *ZERO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    (folder / "tokenizer.model").write_bytes(train_tokenizer(worker.TEXTS * 40, 440))
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    """What one process and two processes computed, by layout; both ranks of a layout must say the same."""
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        command = [sys.executable, *launcher, str(_WORKER), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    alone, first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert first == second
    return alone | first


def _alone(figures: dict[str, Any], name: str) -> dict[str, Any]:
    return figures["sliding alone" if name.startswith("sliding") else "alone"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_gradients_and_log_probabilities(figures, name):
    one, other = _alone(figures, name), figures[name]
    assert other["targets"] == one["targets"]
    assert max(abs(a - b) for a, b in zip(other["losses"], one["losses"], strict=True)) < 1e-6
    assert max(abs(a - b) / a for a, b in zip(one["norms"], other["norms"], strict=True)) < 1e-5
    assert (torch.tensor(other["logs"]) - torch.tensor(one["logs"])).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["alone", "sliding alone", *NAMES])
def test_a_token_changes_what_sees_it_and_nothing_else(figures, folder, name):
    """Two layers: position i sees j through some k that it sees. Without a sliding window that is what i itself sees."""
    made = worker.batch(Tokenizer.load(folder / "tokenizer.model"), 0)
    assert bool(made.prefix.any())
    behind = torch.arange(worker.LENGTH)[:, None] - torch.arange(worker.LENGTH)
    for row in range(worker.WINDOWS):
        ids, prefix = made.document_ids[row], made.prefix[row].bool()
        seen = (ids[:, None] == ids) & ((behind >= 0) | prefix)
        if name.startswith("sliding"):
            seen &= behind.abs() < 7
        through = (seen.float() @ seen.float()) > 0
        assert name.startswith("sliding") or torch.equal(through, seen)
        expected = [through[:, position].nonzero().flatten().tolist() for position in range(worker.LENGTH)]
        assert figures[name]["influence"][row] == expected


def test_the_windows_have_everything_in_them(folder):
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    made = [worker.batch(tokenizer, step) for step in range(worker.STEPS)]
    tokens = torch.cat([batch.tokens for batch in made])
    for name in ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<mask>"):
        assert (tokens == tokenizer.special_ids[name]).any(), name
    assert all(bool(batch.prefix.any()) and int(batch.num_excluded.sum()) > 0 for batch in made)
    assert {0.5, 1.0} <= set(torch.cat([batch.loss_weights for batch in made]).unique().tolist())
