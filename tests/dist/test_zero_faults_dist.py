"""Under ZeRO a loss that is not a number on one rank is seen by all, and neither it nor a refused update changes a bit."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")


def test_one_ranks_fault_is_everybodys(tmp_path, launch):
    launch("zero_faults_worker.py", tmp_path, seconds=580)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == other and len(one) == 10
    for name, row in one.items():
        assert row["told"] == ["nan"], name
        assert row["updated"] == [False, False] and row["unchanged"] and row["step"] == 3, name
        assert math.isfinite(row["norm"]) and row["norm"] > 0, f"{name}: the fault has stayed in a buffer"
