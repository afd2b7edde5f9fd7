"""How fast a step was: tokens/s, TFLOP/s per device, and MFU against a stated peak.

FLOPs are the model's own (`ModelConfig.flops_per_token`, causal half of attention), whatever the kernels
really execute, so that figures of different kernels and layouts can be compared: MFU as in PaLM
(arXiv 2204.02311, appendix B). Every target token counts once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from megatron_codemix.config import ModelConfig

# Dense TFLOP/s without sparsity, from the makers' data sheets: (part of the name torch gives, bf16, fp32 without TF32).
# The first match counts, so longer names come first.
KNOWN_GPUS = (
    ("B200", 2250.0, 75.0),
    ("GH200", 989.0, 67.0),
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100 NVL", 835.0, 60.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("L40S", 362.0, 91.6),
    ("A40", 149.7, 37.4),
    ("L4", 121.0, 30.3),
)
_MATMUL_SIZE = 1024
_MATMUL_SECONDS = 0.3


@dataclass(frozen=True)
class Peak:
    """What 100 % MFU means here."""

    tflops: float | None
    """TFLOP/s of one device; None: unknown, so there is no MFU."""
    origin: str
    """Where the figure comes from, for the log."""


def device_peak(configured: float | None, device: torch.device, precision: str) -> Peak:
    """Peak of one device: as configured, else by the GPU's name, else (CPU) the fastest of some matrix products.

    precision: "bf16" or "fp32". A CPU figure holds for this process's number of threads.
    """
    if configured is not None:
        return Peak(configured, "logging.peak_tflops")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, bf16, fp32 in KNOWN_GPUS:
            if part in name:
                return Peak(bf16 if precision == "bf16" else fp32, f"data sheet of {part}, {precision} dense")
        return Peak(None, f"unknown for '{name}'; set logging.peak_tflops")
    return Peak(_matmul_tflops(precision), f"fastest {_MATMUL_SIZE}³ {precision} matrix product, {torch.get_num_threads()} thread(s)")


def _matmul_tflops(precision: str) -> float:
    """Fastest of the products that fit into the time; constants, so that no random state is touched."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.full((_MATMUL_SIZE, _MATMUL_SIZE), 0.5, dtype=dtype)
    out = torch.empty_like(left)
    torch.mm(left, left, out=out)
    fastest, ends = float("inf"), time.perf_counter() + _MATMUL_SECONDS
    while True:
        begun = time.perf_counter()
        torch.mm(left, left, out=out)
        now = time.perf_counter()
        fastest = min(fastest, now - begun)
        if now > ends:
            return 2.0 * _MATMUL_SIZE**3 / fastest / 1e12


@dataclass(frozen=True)
class Speed:
    """How fast one step was, or the median of several."""

    seconds: float
    """Wall-clock time of the step: reading the batch, forward, backward, update."""
    loader_seconds: float
    """Of that, reading the batch."""
    tokens_per_second: float
    """Window tokens of the global batch per second, targets or not, all devices together."""
    tflops: float
    """TFLOP/s achieved per device."""
    mfu: float | None
    """tflops / peak, 0 to 1; None where the peak is unknown."""


class Meter:
    """Times steps. `with meter.timed(): …` around a step, then `meter.speed(…)`."""

    def __init__(self, model: ModelConfig, rows: int, world_size: int, peak: Peak) -> None:
        self.model, self.rows, self.world_size, self.peak = model, rows, world_size, peak
        self._seconds = self._loader_seconds = 0.0
        self._recent: list[Speed] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the block. A step waits for loss and gradient norm; on a GPU the end of its update runs on into the next one."""
        begun = time.perf_counter()
        yield
        self._seconds = time.perf_counter() - begun

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time the part of a step in which training waits for its batch."""
        begun = time.perf_counter()
        yield
        self._loader_seconds = time.perf_counter() - begun

    @property
    def loader_seconds(self) -> float:
        """What the block timed last has waited for its batch."""
        return self._loader_seconds

    def speed(self, window_tokens: int, sequence_length: int) -> Speed:
        """Speed of the block timed last, which went through `window_tokens` in windows of `sequence_length`."""
        per_second = window_tokens / self._seconds
        tflops = per_second * self.model.flops_per_token(self.rows, sequence_length) / 1e12 / self.world_size
        mfu = tflops / self.peak.tflops if self.peak.tflops else None
        speed = Speed(self._seconds, self._loader_seconds, per_second, tflops, mfu)
        self._recent.append(speed)
        return speed

    def recent(self) -> Speed:
        """Median, figure by figure, of the steps since the last call; the console shows it."""
        steps, self._recent = self._recent, []
        with_mfu = [step.mfu for step in steps if step.mfu is not None]
        return Speed(
            median(step.seconds for step in steps),
            median(step.loader_seconds for step in steps),
            median(step.tokens_per_second for step in steps),
            median(step.tflops for step in steps),
            median(with_mfu) if with_mfu else None,
        )
