"""What is freed inside the process goes back to the system, whatever lies behind it."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
from megatron_codemix.checkpoint.freed import give_back_freed

def held():
    return next(int(row.split()[1]) * 1024 for row in open("/proc/self/status") if row.startswith("VmRSS:"))

give_back_freed()
before = held()
blocks = [bytearray(100_000) for _ in range(400)]
last = bytearray(100_000)  # lies behind them, and stays
blocks = None
kept = held() - before
give_back_freed()
print(kept, held() - before)
"""


def test_freed_blocks_before_one_that_stays_are_given_back() -> None:
    result = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=300, check=True)
    kept, left = map(int, result.stdout.split())
    assert kept > 30_000_000
    assert left < 2_000_000
