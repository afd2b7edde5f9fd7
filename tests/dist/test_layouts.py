"""Every layout computes what one process computes: losses, gradients, evaluations, documents alone in their windows.

The launches and the comparison are layout_table.py's, which also writes docs/layouts.md; the layouts are those of layouts.yaml,
of the families some of them (`families_in_ci`) unless CODEMIX_SOAK=1.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.timeout(3600)  # three launches of many layouts, by whichever test comes first

HERE = Path(__file__).parent
DECLARED = yaml.safe_load((HERE / "layouts.yaml").read_text())
if os.environ.get("CODEMIX_SOAK") != "1":
    DECLARED["families"] = {name: DECLARED["families"][name] for name in DECLARED["families_in_ci"]}
has_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")
DROPOUT = [f"{name}: {way}" for name in DECLARED["dropout"] for way in DECLARED["recompute"]]

BOUNDS = {"loss": 1e-6, "norm": 1e-5, "gradient": 1e-5, "evaluation": 1e-6, "probabilities": 1e-5, "documents": 1e-5, "weights": 1e-3}
"""In fp32: some times what another order of summation makes of it. Weights, after one step of AdamW, which makes ± the learning
rate of a gradient of nearly nothing: enough to see another initialisation, or elements at a wrong place."""
BF16_BOUNDS = {"loss": 3e-3, "norm": 1e-2, "gradient": 5e-2, "evaluation": 5e-3, "probabilities": 0.1, "documents": 0.1, "weights": 5e-2}
"""In bf16, where a sum in another order may round to a neighbour 0.4 % away."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Any]:
    """rows.json of layout_table.py; measured once, by whichever worker of pytest-xdist comes first."""
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "layouts"
    out.mkdir(exist_ok=True)
    with open(out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "rows.json").exists():
            command = [sys.executable, str(HERE / "layout_table.py"), "--out", str(out)]
            process = subprocess.run(command, capture_output=True, text=True, timeout=3500)
            assert process.returncode == 0, process.stderr[-6000:]
            print(process.stdout)
    return json.loads((out / "rows.json").read_text())


@pytest.mark.parametrize(("section", "name"), [(section, name) for section in ("layouts", "families") for name in DECLARED[section]])
def test_the_layout_equals_one_process(section: str, name: str, measured: dict[str, Any]) -> None:
    row = measured[section][name]
    if DECLARED[section][name].get("run") == {"document_masking": False}:
        assert row.pop("documents") is None
    assert {key: row[key] for key, bound in BOUNDS.items() if key in row and not row[key] <= bound} == {}
    assert row["replicas"] == 0.0, "copies of one weight have come apart"


@pytest.mark.parametrize("name", DECLARED["bf16"])
def test_in_bf16_the_layout_equals_one_process_in_bf16(name: str, measured: dict[str, Any]) -> None:
    row = measured["bf16"][name]
    assert {key: row[key] for key, bound in BF16_BOUNDS.items() if not row[key] <= bound} == {}
    assert row["replicas"] == 0.0


@has_deepspeed
@pytest.mark.parametrize("name", DECLARED["deepspeed"])
def test_under_deepspeed_the_layout_equals_one_process_of_the_other_engine(name: str, measured: dict[str, Any]) -> None:
    row = measured["deepspeed"][name]
    assert {key: row[key] for key, bound in BOUNDS.items() if not row[key] <= bound} == {}
    assert row["replicas"] == 0.0


@has_deepspeed
@pytest.mark.parametrize("name", DECLARED["deepspeed_bf16"])
def test_under_deepspeed_in_bf16(name: str, measured: dict[str, Any]) -> None:
    row = measured["deepspeed_bf16"][name]
    assert {key: row[key] for key, bound in BF16_BOUNDS.items() if not row[key] <= bound} == {}
    assert row["replicas"] == 0.0


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_with_recompute_equals_dropout_without(name: str, measured: dict[str, Any]) -> None:
    assert measured["dropout"][name]["same_bits"]
    assert measured["dropout"][name]["replicas"] == 0.0, "a mask that must be shared was drawn by each rank for itself"


def test_golden_losses(measured: dict[str, Any]) -> None:
    """In full digits where this kind of machine is known, else within what other instructions make of it.

    After a change that is meant to change them: `python tests/dist/layout_table.py --golden`, and a line in the changelog.
    """
    golden = json.loads((HERE / "golden.json").read_text())
    if measured["key"] in golden:
        assert measured["losses"] == golden[measured["key"]]
    for losses in golden.values():
        assert measured["losses"] == pytest.approx(losses, abs=1e-6, rel=0)
