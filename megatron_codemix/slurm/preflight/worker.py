"""One process with torch on a node: a matrix product, then the all-reduces that it is told to do. Started by agent.py.

    python -m megatron_codemix.slurm.preflight.worker DEVICE       the number of a GPU, or "cpu"

Every sum here is one of whole numbers that float32 and bfloat16 hold exactly, so "right" means equal, on any device.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.cuda import nccl

from megatron_codemix.errors import printable
from megatron_codemix.worker import die_with

_CPU_SIZE, _GPU_SIZE = 768, 4096
"""Rows of the matrices."""
_PRODUCTS = 8
_SUMS = 4
_PATTERN = 251
"""Values of the all-reduced tensor repeat after so many, a prime: a block in a wrong place is seen."""
_GIB = 1 << 30
_lock = threading.Lock()


def say(message: dict[str, Any]) -> None:
    """One line to the agent."""
    with _lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def ternary(rows: int, columns: int, seed: int, device: torch.device) -> torch.Tensor:
    """int64 [rows, columns] of -1, 0 and 1, one in eight not 0; the same on every device and with every version."""
    at = torch.arange(rows * columns, dtype=torch.int64, device=device)
    mixed = (at * 2654435761 + seed * 40503) % 4294967291
    mixed = (mixed * 1103515245 + (mixed >> 15)) % 4294967291
    eighth = (mixed >> 7) % 16
    return ((eighth == 0).long() - (eighth == 1).long()).reshape(rows, columns)


def check_matmul(device: torch.device) -> dict[str, Any]:
    """A product of two whole-number matrices, again and again. Returns tflops of the best; raises ValueError where one is wrong.

    Right is told by Freivalds' check: (A·B)·r = A·(B·r), in int64 on the CPU, with no 0 in r, so that one wrong entry is seen. An
    entry of A·B has a spread of sqrt(size) / 8, so that none leaves the whole numbers that bfloat16 holds (256).
    """
    size, dtype = (_GPU_SIZE, torch.bfloat16) if device.type == "cuda" else (_CPU_SIZE, torch.float32)
    left, right = (ternary(size, size, seed, device) for seed in (1, 2))
    probe = torch.arange(size, dtype=torch.int64) % 97 + 1
    expected = left.cpu() @ (right.cpu() @ probe)
    first, second = left.to(dtype), right.to(dtype)
    best = float("inf")
    for attempt in range(_PRODUCTS):
        _wait_for(device)
        began = time.perf_counter()
        product = first @ second
        _wait_for(device)
        best = min(best, time.perf_counter() - began)
        if attempt in (0, _PRODUCTS - 1):
            wrong = int((product.cpu().long() @ probe != expected).sum())
            if wrong:
                raise ValueError(f"a matrix product is wrong in {wrong} of {size} rows")
    return {"tflops": round(2 * size**3 / best / 1e12, 4)}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def all_reduce(order: dict[str, Any], device: torch.device) -> float:
    """Sum one tensor over the group that `order` describes; returns GiB/s of bus bandwidth (2·(n-1)/n · bytes / s, nccl-tests').

    Raises ValueError where the sum is wrong, RuntimeError where the others cannot be reached.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
        # a stream of its own: a sum that waits for a dead node must not hold up the next one
        with torch.cuda.stream(torch.cuda.Stream(device)):
            return _all_reduce(order, device)
    return _all_reduce(order, device)


def _all_reduce(order: dict[str, Any], device: torch.device) -> float:
    rank, world, seconds = order["rank"], order["world"], timedelta(seconds=order["seconds"])
    host, _, port = order["store"].rpartition(":")
    store = dist.PrefixStore(order["id"], dist.TCPStore(host, int(port), is_master=False, timeout=seconds, wait_for_workers=False))
    if device.type == "cuda":
        group: Any = dist.ProcessGroupNCCL(store, rank, world, dist.ProcessGroupNCCL.Options())
    else:
        group = dist.ProcessGroupGloo(store, rank, world, timeout=seconds)
    count = order["megabytes"] * (1 << 20) // 4
    pattern = (torch.arange(count, device=device) % _PATTERN).float()
    best = float("inf")
    for _ in range(_SUMS):
        tensor = pattern + rank
        _wait_for(device)
        began = time.perf_counter()
        group.allreduce([tensor]).wait()
        _wait_for(device)
        best = min(best, time.perf_counter() - began)
        wrong = int((tensor != world * pattern + world * (world - 1) // 2).sum())
        if wrong:
            raise ValueError(f"its sum is wrong in {wrong} of {count} places")
    return max(2 * (world - 1) / world, 1 / world) * 4 * count / best / _GIB


def _reduce_and_say(order: dict[str, Any], device: torch.device) -> None:
    try:
        say({"reduce": order["id"], "gib": round(all_reduce(order, device), 3)})
    except Exception as error:  # every failure is the answer
        say({"reduce": order["id"], "fault": printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)})


def address() -> str:
    """Where this node is reached: on the interface that the collectives use, where one is set, else under its name."""
    wanted = os.environ.get("GLOO_SOCKET_IFNAME") or os.environ.get("NCCL_SOCKET_IFNAME") or ""
    names = [] if wanted.startswith("^") else [name for name in wanted.lstrip("=").split(",") if name]
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if any(name.startswith(wished) for wished in names) and one.family == socket.AF_INET:
                return one.address
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main() -> None:
    """Say what torch this is, multiply, then obey until stdin ends."""
    die_with(os.getppid())
    torch.set_num_threads(1)
    device = torch.device("cpu") if sys.argv[1] == "cpu" else torch.device("cuda", int(sys.argv[1]))
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found: dict[str, Any] = {"torch": torch.__version__, "store": f"{address()}:{served.port}"}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, nccl.version())), "device": name, "cuda_device": True}
    say({"end": "torch", "found": found})
    say({"begin": "matmul"})
    try:
        say({"end": "matmul", "found": check_matmul(device)})
    except (ValueError, RuntimeError) as error:
        say({"end": "matmul", "fault": printable(str(error))})
    for text in sys.stdin:
        # a thread each: one that waits for a dead peer must not keep this process from the next round
        threading.Thread(target=_reduce_and_say, args=(json.loads(text), device), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
